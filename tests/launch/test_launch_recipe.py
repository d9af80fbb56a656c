"""A recipe under the launcher: starts, ends, is killed and restarts."""

import os
import re
import signal
import sys
import warnings

import pytest
import tensorflow as tf
from bare_ranks import run_ranks
from compare import assert_same_weights
from launching import need, need_horovod, wait_for
from processes import PROGRAMS

from callbacks import InputError
from launch import exit_codes
from launch.world import THREADS
from recipes.common.run import run as run_recipe

PATIENCE = 300  # seconds; takes ten on an idle machine
HOST = os.uname().nodename


def checkpoint(run, workdir, batch):
    return run.cwd / workdir / "checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"


def mnist(*flags, ranks=2):
    return "--nproc-per-node", ranks, "-m", "recipes.mnist", *flags


@pytest.mark.slow
def test_a_recipe_starts_by_path_and_by_module_from_any_directory(launch):
    flags = ["--model", "mlp", "--epochs", 1, "--workdir"]
    runs = {
        "by-path": launch("recipes/mnist.py", *flags, "by-path"),
        "by-module": launch("-m", "recipes.mnist", *flags, "by-module"),
    }
    for workdir, run in runs.items():
        code, out, err = run.finish(PATIENCE)
        assert code == 0, out + err
        assert "[0] result       accuracy" in out
        assert checkpoint(run, workdir, 22).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks, flag, value, words",
    [
        (1, "--save-freq", "0", "must be above 0. Received: 0"),
        (2, "--global-batch-size", "63", "63 for 2 replicas. Use 62 or 64."),
        (2, "--checkpoint", "/proc/none/{batch}.weights.h5", "cannot be written to /proc/none"),
    ],
)
def test_bad_input_is_reported_in_one_line_and_not_retried(launch, ranks, flag, value, words):
    need_horovod()
    code, out, err = launch("--max-restarts", 3, *mnist("--model", "mlp", flag, value, ranks=ranks)).finish(PATIENCE)
    assert code == 2, out + err
    assert "Traceback" not in out + err and "restart" not in err
    (line,) = {line[len("[0] ") :] for line in out.splitlines() if "error: " in line}
    assert words in line
    assert re.match(rf"rank \d on {HOST}: exit code 2\n    {re.escape(line)}\n", err)


@pytest.mark.parametrize(
    "error, code, line",
    [
        (InputError("no such flag"), exit_codes.BAD_INPUT, "error: no such flag\n"),
        (
            tf.errors.UnknownError(None, None, "HorovodAllreduce: Connection closed by peer"),
            exit_codes.ANOTHER_RANK_FAILED,
            "error: another rank has ended; see its last output for the reason\n",
        ),
    ],
)
def test_a_rank_exits_at_once_and_its_code_distinguishes_cause_and_victim(monkeypatch, capsys, error, code, line):
    def main():
        raise error

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as exit:
        run_recipe(main)
    assert (exit.value.code, capsys.readouterr().err) == (code, line)


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks_with_130(launch):
    need_horovod()
    run = launch(*mnist("--model", "mlp", "--epochs", 1000, "--save-freq", 10, "--workdir", "run"))
    wait_for(checkpoint(run, "run", 20).exists, "batch 20", PATIENCE)
    os.kill(run.process.pid, signal.SIGINT)
    code, out, err = run.finish(PATIENCE)
    assert (code, err) == (130, ""), out
    left_at = re.search(r"^\[0\] stopped .* resumes from run/checkpoints/model_batch_at_(\d+).weights.h5$", out, re.MULTILINE)
    assert left_at and checkpoint(run, "run", int(left_at[1])).exists(), out
    assert "Traceback" not in out
    assert run.none_left()


CNN = ["--epochs", 3, "--save-freq", 10]  # with BatchNorm and Dropout, whose state differs between ranks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last checkpoint of an uninterrupted run of two ranks. Both engines give the same bits, as a sum of two has one order."""
    workdir = tmp_path_factory.mktemp("whole")
    flags = ["--strategy", "multiworker", *CNN, "--workdir", workdir]
    for code, _, err in run_ranks(2, "-m", "recipes.mnist", *flags, engine="multiworker"):
        assert code == 0, err
    return workdir / "checkpoints" / "model_batch_at_00066.weights.h5"


@pytest.mark.slow
def test_a_killed_rank_does_not_change_the_result(launch, whole, engine):
    need(engine)
    command = mnist("--strategy", engine, *CNN, "--workdir", "killed")
    run = launch("--max-restarts", 1, *command, env=dict.fromkeys(THREADS, "1"))  # as many as the whole run's
    wait_for(checkpoint(run, "killed", 30).exists, "batch 30, in the middle of an epoch", PATIENCE)
    os.kill(run.rank(1), signal.SIGKILL)
    code, out, err = run.finish(PATIENCE)
    assert code == 0, out + err
    assert err.splitlines()[0] == f"rank 1 on {HOST}: killed by SIGKILL"
    own = int(re.search(r"^  last batch  (\d+)$", err, re.MULTILINE)[1])
    others = int(re.search(rf"^    rank 0 on {HOST}: .*, last batch (\d+)$", err, re.MULTILINE)[1])
    assert own >= 30 and abs(own - others) <= 1
    assert "all ranks restart in 0.5 s (restart 1 of 1)" in err
    resumed = re.search(r"\[0\] begins       from .*: batch (\d+), ", out)
    assert 30 <= int(resumed[1]) <= max(own, others)
    assert_same_weights(whole, checkpoint(run, "killed", 66))


@pytest.mark.slow
def test_a_recipe_that_fails_twice_at_the_same_batch_is_not_restarted(launch):
    command = ["--no-python", sys.executable, PROGRAMS / "fails_at_30.py", "--model", "mlp", "--save-freq", 20, "--workdir", "run"]
    code, out, err = launch("--max-restarts", 5, *command).finish(PATIENCE)
    assert code == 1, out + err
    assert "    AssertionError" in err and "last batch  30" in err
    assert "the run failed twice in a row at batch 30" in err
