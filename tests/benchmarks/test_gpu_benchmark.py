"""The benchmark of a GPU, without one: it says so, its small models take the same way on a CPU, and it ends in time."""

import multiprocessing
import re
import subprocess
import sys
import tempfile
import time

import pytest
from processes import ROOT, USER_ENVIRONMENT
from tensorflow.python.framework import config

from benchmarks import gpu
from benchmarks.gpu import Job, plan, speeds
from benchmarks.gpu_cells import Cell, Speed, serve

BATCHES = {"ResNet-50": 256, "GPT-2 124M": 16}


def benchmark(*arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=USER_ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_line():
    done = benchmark("benchmarks", "gpu")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines()[1:] if line] == [
        "gpu: left out, needs a GPU (python -m benchmarks.gpu --tiny runs small models on a CPU)"
    ]


def in_this_process(jobs, seconds):
    """Does what `gpu.run` does in processes, without limits of time."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    results = {}
    for job in jobs:
        for task in job.tasks:
            serve([task], {}, tempfile.gettempdir(), theirs)
            key, results[key] = ours.recv()
    return results


@pytest.mark.slow
def test_small_models_are_measured_in_every_way_on_a_cpu(monkeypatch, tmp_path, capsys, no_determinism):
    monkeypatch.setattr(gpu, "run", in_this_process)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gpu.main(["--tiny", "--seconds", "0.05"])
    trainings, saves, settings = (table.splitlines()[2:] for table in capsys.readouterr().out.split("\n\n")[1:])
    assert len(trainings) == len(saves) == 2 and len(settings) == 3
    for row in trainings:
        assert all(float(cell.split()[0]) > 0 for cell in row.strip("| ").split(" | ")[1:]), row
    assert all(float(row.split("|")[3]) > 0 for row in saves)
    assert not re.search("failed|out of memory", str([trainings, saves, settings]))
    assert config.is_op_determinism_enabled()  # by the last jobs


@pytest.mark.slow
def test_a_process_that_takes_too_long_is_ended_and_the_next_one_has_its_turn():
    jobs = [Job(1e-6, [("long", time.sleep, (10_000,))], {}), Job(1, [("short", sum, ((1, 2),)), ("wrong", sum, (3,))], {})]
    results = gpu.run(jobs, seconds=300)
    assert results.pop("wrong").startswith("failed: TypeError: ")
    assert results == {"short": 3}


def test_every_training_of_the_tables_is_planned_once_and_the_shares_are_all_of_the_time():
    jobs = plan(BATCHES, ("bfloat16", "TF32", "float32"), seconds=4)
    assert sum(job.share for job in jobs) == pytest.approx(1)
    keys = [key for job in jobs for key, _, _ in job.tasks]
    assert len(keys) == len(set(keys))
    for name, batch in BATCHES.items():
        for precision in ("bfloat16", "TF32", "float32"):
            for how in ({}, {"compiled": True}, {"deterministic": True}, {"is_plain": True, "compiled": None}):
                assert Cell(name, batch, precision, **how) in keys
    for job in jobs:  # the switch cannot be undone in a process
        assert len({key.deterministic for key, _, _ in job.tasks if isinstance(key, Cell)}) <= 1


def test_a_table_has_ratios_to_the_plain_fit_and_says_what_is_missing():
    results = {
        Cell("ResNet-50", 256, "TF32", is_plain=True, compiled=None): Speed(2000.0, 0.25),
        Cell("ResNet-50", 256, "TF32"): Speed(1500.0, 0.2),
        Cell("ResNet-50", 256, "TF32", compiled=True): "out of memory",
    }
    row = speeds(results, {"ResNet-50": 256}, ["TF32"]).splitlines()[2]
    assert row == "| ResNet-50, images, batches of 256, TF32 | 2000 (25%) | 1500 (0.75; 20%) | out of memory | - |"
