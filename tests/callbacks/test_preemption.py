"""A run that is stopped by a signal saves once, exits with a code that gives the reason, and resumes exactly."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from bare_ranks import run_ranks
from compare import assert_same_rest, assert_same_weights
from forked import Forked
from launching import ENGINES
from processes import PROGRAM_ENVIRONMENT, PROGRAMS, ROOT, run_program, written_or_in_writing

from callbacks import GlobalStepCheckpoint, Preempted, preemption
from callbacks.report.report import Report
from launch.processes import catches

EPOCHS, LAST = 2, 88
SCRIPT = PROGRAMS / "preempted_run.py"
# Place, signal, the rank that hears it, exit code, and the batch of the newest checkpoint afterwards: in one process, and where
# the ranks have to agree first, for which the next batch carries the message.
LIVES = [
    ("begin", "SIGUSR2", 1, 75, (None, 1)),
    ("train:1", "SIGTERM", 0, 143, (1, 2)),
    ("train:40", "SIGINT", 1, 130, (40, 41)),
    ("test:1", "SIGUSR1", 0, 75, (44, 44)),
    ("train:70", "SIGHUP", 1, 143, (70, 71)),
]


def name(batch):
    return f"model_batch_at_{batch:05d}.weights.h5"


def visible(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def run_one(*command):
    process = Forked(command, cwd=ROOT, env=PROGRAM_ENVIRONMENT)
    output = process.communicate(300)
    return [(process.returncode, *output)]


def start(strategy, *command):
    """Runs a command in one process or in two ranks. Returns exit code, standard output and standard error of each."""
    return run_ranks(2, *command, engine=strategy) if strategy in ENGINES else run_one(*command)


# The convnet has state of each replica: statistics, and seeds of dropout.
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, model", [("single", "mlp"), ("mirrored", "cnn"), ("horovod", "cnn"), ("multiworker", "mlp")], ids=lambda each: each
)
def test_a_run_that_is_stopped_repeatedly_ends_with_the_same_weights(tmp_path, strategy, model):
    flags = ["--epochs", EPOCHS, "--save-freq", 1000, "--strategy", strategy, "--model", model, "--global-batch-size", 32]
    flags += ["--virtual-devices", 2] if strategy == "mirrored" else []
    with ThreadPoolExecutor(1) as beside:
        whole = beside.submit(start, strategy, "-m", "recipes.mnist", *flags, "--workdir", tmp_path / "whole")
        leave_again_and_again(tmp_path / "left", strategy, flags)
    for code, _, errors in whole.result():
        assert code == 0, errors
    assert_same_end(tmp_path / "whole" / "checkpoints" / name(LAST), tmp_path / "left" / "checkpoints" / name(LAST))


def leave_again_and_again(workdir, strategy, flags):
    """Stops the run at each place, and checks what each attempt leaves behind and how the report says that it has ended."""
    saved = set()
    several = strategy in ENGINES
    for place, number, rank, expected, batches in LIVES:
        batch = batches[several]
        results = start(strategy, SCRIPT, place, number, rank if several else 0, *flags, "--workdir", workdir)
        for code, _, errors in results:
            assert code == expected, (place, errors)
            assert "Traceback" not in errors
        saved |= {name(batch)} if batch else set()
        assert visible(workdir) == sorted(saved), place  # and no lock, and nothing half written
        assert "the same command resumes from" in results[0][1]
    results = start(strategy, "-m", "recipes.mnist", *flags, "--workdir", workdir)
    assert results[0][0] == 0, results[0][2]
    elsewhere = {"SIGINT": "by INT on another rank", "SIGHUP": "by TERM or HUP on another rank"}
    reasons = [elsewhere[number] if several and rank else f"by {number.removeprefix('SIG')}" for _, number, rank, _, _ in LIVES[1:]]
    ends = [attempt.why for attempt in Report(str(workdir / "record.jsonl"), time.time()).attempts]
    assert ends[-5:] == [*(f"stopped {reason}, after a save" for reason in reasons), "finished"]


def assert_same_end(one, other):
    """Compares weights, optimizer, counters, history, logs, and the values of each replica."""
    assert_same_weights(one, other)
    assert_same_rest(one, other)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_signal_before_training_ends_the_process_at_once_and_writes_nothing(recipe, tmp_path, number, code):
    process = recipe("--workdir", tmp_path / "run", imports=True).process
    while not catches(process.pid, signal.SIGUSR1):
        time.sleep(0.001)
    process.send_signal(number)
    killed_in_import = -number if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) else code
    assert process.wait(timeout=300) in (code, killed_in_import)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_many_signals_do_not_disturb_the_end_of_the_process(recipe, tmp_path):
    process = recipe("--workdir", tmp_path, "--save-freq", 1, "--epochs", 100, "--model", "mlp", imports=True).process
    while not (tmp_path / "checkpoints" / name(30)).exists():
        assert process.poll() is None
        time.sleep(0.01)
    while process.poll() is None:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        time.sleep(0.001)
    assert process.wait() == 75
    assert not [file for file in os.listdir(tmp_path / "checkpoints") if file.startswith(".")]


def test_a_second_ctrl_c_ends_a_run_whose_batch_never_ends():
    command = [sys.executable, PROGRAMS / "endless_batch.py"]
    process = subprocess.Popen(command, env=PROGRAM_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stdout.readline() != "trains\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    while process.poll() is None:  # two signals at once may arrive as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.returncode == 130
    assert process.stderr.read().splitlines()[-1] == "interrupted twice; the same command resumes from the newest checkpoint"


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_and_ends(tmp_path):
    terminal, its_side = pty.openpty()
    flags = ["--model", "mlp", "--epochs", 10_000, "--save-freq", 1_000_000, "--workdir", tmp_path]
    command = ["setsid", "--ctty", sys.executable, "-m", "recipes.mnist", *map(str, flags)]
    process = subprocess.Popen(command, cwd=ROOT, env=PROGRAM_ENVIRONMENT, stdin=its_side, stdout=its_side, stderr=its_side)
    os.close(its_side)
    shown = b""
    while b"loss" not in shown:  # a redrawn progress bar
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(300) == 143
    assert len(visible(tmp_path)) == 1
    [attempt] = Report(str(tmp_path / "record.jsonl"), time.time()).attempts
    assert attempt.why == "stopped by HUP, after a save"


@pytest.mark.slow
@pytest.mark.parametrize(("training", "number", "code"), [("plain", signal.SIGINT, 130), ("recipe", signal.SIGHUP, 143)])
def test_a_signal_that_also_ends_the_reader_of_the_output_does_not_prevent_the_save(tmp_path, training, number, code):
    reader = subprocess.Popen(
        ["env", "--default-signal=INT,HUP", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0
    )
    command = [sys.executable, PROGRAMS / "signalled_pipeline.py", training, number.name, tmp_path]
    run = subprocess.Popen(
        command, env=PROGRAM_ENVIRONMENT, stdout=reader.stdin, stderr=subprocess.STDOUT, process_group=reader.pid
    )
    reader.stdin.close()
    assert run.wait(300) == code
    assert reader.wait(300) == -number
    assert len(visible(tmp_path)) == 1
    [attempt] = Report(str(tmp_path / "record.jsonl"), time.time()).attempts
    assert attempt.why == f"stopped by {number.name.removeprefix('SIG')}, after a save"


def test_a_reader_that_ends_during_the_save_does_not_change_the_exit_code():
    done = run_program("late_reader.py")
    assert (done.returncode, done.stderr) == (130, "")


def test_a_hangup_that_nohup_ignores_stays_ignored():
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, PROGRAMS / "endless_batch.py"]
    process = subprocess.Popen(command, env=PROGRAM_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stdout.readline() != "trains\n":
        assert process.poll() is None
    assert catches(process.pid, signal.SIGTERM) and not catches(process.pid, signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    while process.poll() is None:  # two signals at once may arrive as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert process.returncode == 130


@pytest.mark.slow
def test_an_earlier_attempt_that_still_runs_cannot_commit_a_checkpoint(recipe, tmp_path):
    """Split brain: Slurm has lost a node and has requeued the job, while the old attempt is saving."""
    flags = ["--model", "mlp", "--epochs", 20, "--save-freq", 10, "--workdir", tmp_path]
    checkpoints = tmp_path / "checkpoints"
    old = recipe(*flags, env={"SLURM_JOB_ID": "7"})
    is_due = written_or_in_writing(checkpoints / name(20))
    while not is_due():
        assert old.process.poll() is None
        time.sleep(0.0005)
    old.process.send_signal(signal.SIGSTOP)
    newest = max(path.name for path in checkpoints.glob("model_*"))  # the stop may come after the rename, or some saves later
    code, out, errors = recipe(*flags, env={"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}).finish()
    assert code == 0, errors
    assert "begins       from" in out and f"{newest}: batch {int(newest[15:20])}" in out
    before = {path.name: path.stat() for path in checkpoints.iterdir()}
    old.process.send_signal(signal.SIGCONT)
    code, _, errors = old.finish()
    assert code == 1
    assert "a later attempt of this run has begun and ended" in errors
    assert {path.name: path.stat() for path in checkpoints.iterdir()} == before


def test_a_run_stops_while_there_is_time_for_another_save_before_its_job_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, "_job_end", time.time() + 10_000)
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "{batch}.weights.h5"), save_freq=3, background=False)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                checkpoint._writer.slowest = 6000.0  # as if the last save had taken that long

    with pytest.raises(Preempted) as left:
        model.fit(np.zeros((32, 1)), np.zeros((32, 1)), batch_size=1, verbose=0, callbacks=[Slow(), checkpoint])
    assert left.value.code == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.weights.h5", "5.weights.h5"]


@pytest.mark.slow
def test_a_run_whose_job_ends_soon_stops_after_the_first_batch(recipe, tmp_path):
    code, out, errors = recipe("--model", "mlp", "--workdir", tmp_path, module="tests.programs.job_ends_soon").finish()
    assert code == 75, errors
    assert re.search(r"^stopped +because the job ends in \d s; the same command resumes from ", out, re.MULTILINE)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [name(1)]


@pytest.mark.slow
def test_after_fit_signals_have_their_previous_effect_and_not_before(tmp_path):
    done = run_program("signals_after_fit.py", tmp_path)
    assert done.stdout.split("\n")[:3] == ["caught True", "given back True", "interrupted True"], done.stderr
    assert done.returncode == 143 and (tmp_path / "b3.weights.h5").exists()


@pytest.mark.slow
def test_a_fit_in_another_thread_stops_on_a_signal_and_saves_after_the_end_of_the_main_thread(tmp_path):
    done = run_program("trains_in_thread.py", tmp_path, "until TERM")
    assert done.stdout == "stopped 143\n" and "Traceback" not in done.stderr
    assert (tmp_path / "b6.weights.h5").exists()
    done = run_program("trains_in_thread.py", tmp_path, "after exit")
    assert "Traceback" not in done.stderr
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"b{batch}.weights.h5" for batch in (10, 4, 6, 8)]


@pytest.mark.slow
def test_the_past_end_time_of_another_job_does_not_end_a_run(recipe, tmp_path):
    process = recipe("--model", "mlp", "--epochs", "1", "--workdir", tmp_path, env={"SLURM_JOB_END_TIME": "1700000000"})
    code, _, errors = process.finish()
    assert code == 0
    assert "SLURM_JOB_END_TIME=1700000000 is in the past, so it belongs to another job" in errors
