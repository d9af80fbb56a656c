"""The benchmark of a GPU, without one: it says so, its small models take the same way on a CPU, and it ends in time."""

import subprocess
import sys
import time

import pytest
from processes import ROOT, USER_ENVIRONMENT

from benchmarks.gpu import Job, plan, run, speeds
from benchmarks.gpu_cells import Cell, Speed

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


@pytest.mark.slow
def test_small_models_are_measured_in_every_way_on_a_cpu():
    done = benchmark("benchmarks.gpu", "--tiny", "--seconds", "0.2", "--minutes", "60")
    assert done.returncode == 0, done.stderr
    trainings, saves, settings = (table.splitlines()[2:] for table in done.stdout.split("\n\n")[1:])
    assert len(trainings) == len(saves) == 2 and len(settings) == 3
    for row in trainings:
        assert all(float(cell.split()[0]) > 0 for cell in row.strip("| ").split(" | ")[1:]), row
    assert all(float(row.split("|")[3]) > 0 for row in saves)
    assert "failed" not in done.stdout and "out of memory" not in done.stdout


def test_a_process_that_takes_too_long_is_ended_and_the_next_one_has_its_turn():
    began = time.monotonic()
    jobs = [Job(0.5, [(name, time.sleep, (1000,))], {}) for name in ("first", "second")]
    assert run(jobs, seconds=0.2) == {}
    assert time.monotonic() - began < 100


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
