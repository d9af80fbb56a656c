"""The recipe on several ranks: the same training and the same files, with any interruption."""

import importlib.util
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from bare_ranks import bare_ranks, run_ranks
from compare import assert_same_rest, assert_same_weights, datasets, lasting_header
from curves import curves
from launching import ENGINES, need, wait_for
from processes import PROGRAMS, discard_after, fork_program, written_or_in_writing

from callbacks import InputError, latest_checkpoint
from callbacks.disk.stored_header import read_header
from launch import exit_codes
from launch.node import agent, stalls
from recipes.common.data.digits import BRIGHTEST, load_digits
from recipes.common.distribution import get_distribution, setup
from recipes.mnist import parse_args


def succeed(engine, size, *command):
    """Returns the standard output of the chief."""
    results = run_ranks(size, *command, "--strategy", engine, engine=engine)
    for code, _, errors in results:
        assert code == 0, errors
    return results[0][1]


def name(batch):
    return f"model_batch_at_{batch:05d}.weights.h5"


def assert_equal_trainings(one, other, tolerance):
    """Checks for the same files, counters and logs, and for equal weights, relative to the largest of each variable."""
    first, second = (sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (one, other))
    assert first == second
    a, b = latest_checkpoint(one / "checkpoints"), latest_checkpoint(other / "checkpoints")
    assert (a.batch, a.step, a.epoch, a.samples) == (b.batch, b.step, b.epoch, b.samples)
    assert a.metrics.keys() == b.metrics.keys()
    for key, value in a.metrics.items():
        assert b.metrics[key] == pytest.approx(value, rel=1e-6), key
    expected, found = datasets(a.path), datasets(b.path)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            assert np.abs(found[key] - value).max() <= tolerance * max(np.abs(value).max(), 1e-30), key


MLP = ["--model", "mlp", "--global-batch-size", 128, "--seed", 3]
ENDLESS = ["--model", "mlp", "--epochs", 1000, "--save-freq", 10]


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory):
    """The arguments of `with_floatx.py` for four epochs in float64, with a number of validation samples that nothing divides."""
    (images, labels), (held_out, held_out_labels) = load_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    prime = 359
    x_train, x_test = ((each * (255 / BRIGHTEST)).astype("uint8") for each in (images, held_out[:prime]))
    np.savez(path, x_train=x_train, y_train=labels, x_test=x_test, y_test=held_out_labels[:prime])
    return ["float64", "recipes.mnist", *MLP, "--data", path, "--epochs", 4, "--save-freq", 10, "--update-freq", 10]


@pytest.fixture(scope="module")
def single(in_float64, tmp_path_factory):
    """Four epochs on one replica in float64."""
    workdir = tmp_path_factory.mktemp("single")
    done = fork_program("with_floatx.py", *in_float64, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def training_curves(directory):
    """Returns the curves that do not depend on time: (run, tag) -> [(step, value), ...]."""
    found = curves(directory / "tensorboard")
    of_batches = ("batch_loss", "batch_loss_alone", "batch_accuracy", "batch_learning_rate")
    return {(run, tag): points for (run, tag), points in found.items() if run != "batches" or tag in of_batches}


@pytest.mark.slow
@pytest.mark.parametrize("strategy, size", [("mirrored", 4), ("horovod", 2), ("multiworker", 4)])
def test_replicas_and_ranks_train_as_one_replica_with_the_same_files_metrics_and_curves(
    single, in_float64, tmp_path, strategy, size
):
    flags = [*in_float64, "--workdir", tmp_path]
    if strategy == "mirrored":
        done = fork_program("with_floatx.py", *flags, "--strategy", strategy, "--virtual-devices", size)
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        out = succeed(strategy, size, PROGRAMS / "with_floatx.py", *flags)
    assert f"strategy     {strategy}, {size} replicas" in out
    assert_equal_trainings(single, tmp_path, 1e-12)
    assert read_header(latest_checkpoint(tmp_path / "checkpoints").path)["counts"]["replicas"] == size
    expected, found = training_curves(single), training_curves(tmp_path)
    assert found.keys() == expected.keys() >= {("batches", "batch_loss"), ("train", "epoch_loss"), ("validation", "epoch_accuracy")}
    for key, points in expected.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points]
        np.testing.assert_allclose([value for _, value in found[key]], [value for _, value in points], rtol=1e-6, err_msg=str(key))


@pytest.mark.slow
def test_a_rank_selects_its_device_before_it_sends_the_first_tensor(tmp_path, engine):
    succeed(engine, 1, PROGRAMS / "late_devices.py", *MLP, "--epochs", 1, "--workdir", tmp_path)


@pytest.mark.slow
def test_a_restart_with_another_number_of_ranks_and_the_other_engine_sees_the_same_samples(single, in_float64, tmp_path):
    command = [PROGRAMS / "with_floatx.py", *in_float64, "--workdir", tmp_path]
    for engine, size, until in (("horovod", 4, 10), ("multiworker", 1, 20)):
        kill_when((tmp_path / "checkpoints" / name(until)).exists, engine, size, *command)
        discard_after(tmp_path / "checkpoints" / name(until))
    succeed("horovod", 2, *command)
    assert_equal_trainings(single, tmp_path, 1e-12)


def kill_when(condition, engine, size, *command):
    """Starts ranks, and kills all of them as soon as a condition is true."""
    with bare_ranks(size, *command, "--strategy", engine, engine=engine) as processes:
        deadline = time.monotonic() + 300
        while not condition():
            for process in processes:
                assert process.poll() is None, process.output()
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.0005)


@pytest.mark.slow
def test_three_kills_of_all_ranks_end_with_the_same_weights(tmp_path, engine):
    """With BatchNorm and Dropout: the state of each rank is restored too."""
    epochs, last = 2, 44
    checkpoints = tmp_path / "killed" / "checkpoints"
    command = ["-m", "recipes.mnist", "--epochs", epochs, "--save-freq", 1, "--workdir", tmp_path / "killed"]
    for moment in (checkpoints.exists, written_or_in_writing(checkpoints / name(7)), (checkpoints / name(22)).exists):
        kill_when(moment, engine, 2, *command)
    out = succeed(engine, 2, *command)
    assert f"trained on   {last} batches, {last * 64} samples, {last} steps" in out
    succeed(engine, 2, "-m", "recipes.mnist", "--epochs", epochs, "--save-freq", last, "--workdir", tmp_path / "whole")
    whole, killed = (tmp_path / run / "checkpoints" / name(last) for run in ("whole", "killed"))
    assert_same_weights(whole, killed)
    assert_same_rest(whole, killed)
    assert_of_each_rank(killed)
    visible = {path.name for path in checkpoints.iterdir() if not path.name.startswith(".")}
    assert visible == {name(batch) for batch in range(1, last + 1)}


def assert_of_each_rank(path):
    """Checks that the file contains BatchNorm's statistics of each rank, which are not averaged."""
    beside = lasting_header(path)["beside"]
    with h5py.File(path, "r") as file:
        ranks = [len(file[f"global_step/variables/{i}"]) for i, name in enumerate(beside) if "moving" in name]
    assert ranks and set(ranks) == {2}


@pytest.mark.slow
def test_the_other_ranks_exit_soon_after_a_rank_has_died(tmp_path, engine):
    command = ["-m", "recipes.mnist", "--strategy", engine, "--epochs", 1000, "--save-freq", 10, "--workdir", tmp_path]
    with bare_ranks(2, *command, engine=engine) as (chief, other):
        deadline = time.monotonic() + 300
        while not (tmp_path / "checkpoints" / name(20)).exists():
            assert chief.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        other.kill()
        _, errors = chief.communicate(timeout=300)
    assert chief.returncode == exit_codes.ANOTHER_RANK_FAILED
    lost = {"horovod": "another rank has ended", "multiworker": "rank 1 does not respond"}[engine]  # Horovod does not know which
    assert f"error: {lost}; see its last output for the reason" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_rank_that_skips_all_reduce_stops_the_run_at_the_first_batch_and_is_named(launch, engine):
    """Even though the other rank waits for its gradients."""
    need(engine)
    run = launch(
        "--nproc-per-node", "2", PROGRAMS / "skips_all_reduce.py", "--strategy", engine, "--save-freq", "1", "--workdir", "run"
    )
    code, _, errors = run.finish(300)
    assert code == 1
    named, said, *_ = errors.splitlines()
    assert named == f"rank 1 on {os.uname().nodename}: exit code 1"
    assert said.startswith("    error: Rank 1 trained its first batch without averaging the gradients")
    assert not list((run.cwd / "run" / "checkpoints").glob("model*"))


@pytest.mark.slow
def test_messages_of_a_long_run_do_not_leak_memory():
    """TensorFlow keeps 0.8 kB for each operation with a new number: 1.6 MB for half of these."""
    (code, out, errors), _ = run_ranks(2, PROGRAMS / "many_messages.py", engine="multiworker")
    assert code == 0, errors
    assert int(re.search(r"grew by (-?\d+)", out)[1]) < 800


@pytest.mark.parametrize("installed, engine", [(True, "horovod"), (False, "multiworker")])
def test_auto_selects_horovod_for_several_ranks_if_it_is_installed(monkeypatch, installed, engine):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed if name == "horovod" else find_spec(name))
    ranks = SimpleNamespace(rank=1, size=2, gather=lambda flags: [flags] * 2)
    monkeypatch.setattr(setup, "ENGINES", dict.fromkeys(ENGINES, lambda: ranks))
    monkeypatch.setattr(setup, "install", lambda ranks: None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert get_distribution(parse_args([])).name == engine


@pytest.mark.slow
def test_where_horovod_is_not_installed_several_ranks_train_without_it(tmp_path):
    command = [PROGRAMS / "without_horovod.py", *MLP, "--epochs", 1, "--workdir", tmp_path]
    (code, out, errors), _ = run_ranks(2, *command, engine="multiworker")
    assert code == 0, errors
    assert "strategy     multiworker, 2 replicas" in out


@pytest.mark.slow
@pytest.mark.parametrize("engine, killed", [("multiworker", 0), ("horovod", 1)])
def test_the_launcher_ends_the_others_of_a_killed_rank_within_ten_seconds(launch, engine, killed):
    """It kills those that have not ended after `KILL_AFTER`."""
    need(engine)
    assert agent.KILL_AFTER < 10
    run = launch("--nproc-per-node", "2", "-m", "recipes.mnist", *ENDLESS, "--strategy", engine, "--workdir", "run")
    wait_for((run.cwd / "run" / "checkpoints" / name(20)).exists, "batch 20", 300)
    os.kill(run.rank(killed), signal.SIGKILL)
    code, _, errors = run.finish()
    assert code == 128 + signal.SIGKILL
    assert errors.startswith(f"rank {killed} on {os.uname().nodename}: killed by SIGKILL\n")
    assert run.none_left()


@pytest.mark.slow
@pytest.mark.parametrize("engine, stopped", [("horovod", 0), ("multiworker", 1)])
def test_the_launcher_ends_the_others_of_a_stopped_rank_and_names_it(launch, engine, stopped):
    """It decides after 5 s, before TensorFlow, which notices after 10 s, and Horovod, which never does."""
    need(engine)
    run = launch("--nproc-per-node", "2", "-m", "recipes.mnist", *ENDLESS, "--strategy", engine, "--workdir", "run")
    wait_for((run.cwd / "run" / "checkpoints" / name(20)).exists, "batch 20", 300)
    os.kill(run.rank(stopped), signal.SIGSTOP)
    code, _, errors = run.finish()
    assert code == exit_codes.FAILED
    assert errors.startswith(f"rank {stopped} on {os.uname().nodename}: was stopped (SIGSTOP) for {stalls.STOPPED:g} s\n")
    assert run.none_left()


def test_ranks_with_different_flags_are_refused():
    for code, _, errors in run_ranks(2, PROGRAMS / "own_seed.py"):
        assert code == 2, errors
        assert "same flags. Received: --seed 1 on rank 1, 0 on the chief." in errors


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--strategy", "single"], "one of 2 ranks. Use --strategy multiworker or horovod"),
        (["--strategy", "mirrored", "--virtual-devices", "2"], "one of 2 ranks. Use --strategy multiworker or horovod"),
        (["--strategy", "horovod", "--virtual-devices", "2"], "with --strategy horovod each process is one"),
        (["--strategy", "multiworker", "--virtual-devices", "2"], "with --strategy multiworker each process is one"),
    ],
)
def test_flags_that_contradict_ranks_are_refused(tmp_path, monkeypatch, flags, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=error):
        get_distribution(parse_args(["--workdir", str(tmp_path), *flags]))


def test_an_impossible_rank_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="A rank must be below the world size"):
        get_distribution(parse_args(["--workdir", str(tmp_path)]))


@pytest.mark.slow
def test_ranks_of_a_launcher_that_does_not_configure_the_engine_are_refused(recipe, tmp_path, engine):
    """Otherwise, each rank would silently train alone."""
    need(engine)
    of_torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    code, _, errors = recipe("--strategy", engine, "--workdir", tmp_path, env=of_torchrun).finish()
    assert code == 2, errors
    assert f"This is rank 0 of 2, but --strategy {engine} has rank 0 of 1. Start the ranks with python -m launch" in errors


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("strace"), reason="needs root, and apt-get install strace")
@pytest.mark.parametrize("engine, resumes", [("horovod", False), ("multiworker", True)])
def test_only_the_chief_touches_the_runs_directory(recipe, tmp_path, engine, resumes):
    workdir = tmp_path / "run"
    workdir.mkdir()
    flags = ["--model", "mlp", "--save-freq", 10, "--keep-last", 2]
    if resumes:
        code, _, errors = recipe(*flags, "--epochs", 1, "--workdir", workdir).finish()
        assert code == 0, errors
    succeed(engine, 2, PROGRAMS / "read_only_rank.py", workdir, *flags, "--epochs", 2)
    assert latest_checkpoint(workdir / "checkpoints").batch == 44
    touched = [line for line in Path(f"{workdir}.trace").read_text().splitlines() if str(workdir) in line]
    changes = ("O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC", "rename", "unlink", "mkdir", "rmdir", "link(", "truncate", "utime")
    assert [line for line in touched if any(change in line for change in changes) and "execve" not in line] == []
