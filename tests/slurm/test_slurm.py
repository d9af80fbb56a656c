"""The table in slurm/README.md: what each event of Slurm does to a run, on a real cluster with real training."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bare_ranks import run_ranks
from compare import assert_same_weights, datasets
from launching import wait_for
from processes import PROGRAMS, ROOT, USER_ENVIRONMENT, fork_python
from slurm_jobs import (
    CHECKPOINTS,
    ENVIRONMENT,
    HOROVOD,
    LONG,
    MIRRORED,
    RECIPE,
    SHORT,
    checkpoints,
    hurry,
    last,
    wait_for_batch,
    wait_for_training,
)

pytestmark = pytest.mark.slow


def train(recipe, folder):
    """Trains without Slurm, in one process."""
    hurry(folder)
    done = fork_python(recipe, cwd=folder, env={**USER_ENVIRONMENT, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr


def train_in_ranks(size, recipe, folder, engine):
    """Trains without Slurm. Returns the last checkpoint."""
    command = ["-m", "recipes.mnist", *recipe[1:], "--strategy", engine, "--workdir", folder / CHECKPOINTS.parent]
    for code, _, errors in run_ranks(size, *command, engine=engine):
        assert code == 0, errors
    return last(folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The folder of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("single")
    train(RECIPE, folder)
    return folder


def test_after_a_warning_two_ranks_on_each_of_two_nodes_resume_with_the_same_bits_and_files(submit, tmp_path, single, engine):
    """The weights have the bits of an uninterrupted run in four ranks, and up to rounding those of a single run."""
    warning = {"horovod": "USR1", "multiworker": "USR2"}[engine]
    job = submit("-N2", recipe=[*RECIPE, "--strategy", engine], NPROC_PER_NODE="2")
    wait_for_batch(tmp_path, 30)
    job.signal(warning, "--batch")
    job.wait_for_attempt(2)
    hurry(tmp_path)
    whole = train_in_ranks(4, RECIPE, tmp_path / "whole", engine)
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 1
    assert f"{engine}, 4 replicas" in job.output
    assert f"by {warning};" in job.output and "has saved and is requeued" in job.output
    assert_same_weights(whole, last(tmp_path))
    logs = sorted(path.name for path in (tmp_path / "runs/logs" / job.number).iterdir())
    assert logs == [f"rank-{i}.log" for i in range(4)]
    saved = re.search(r"begins +from \S+/(model_\S+):", job.output)[1]
    assert {*checkpoints(tmp_path)} == {*checkpoints(single), saved}
    a, b = (datasets(folder / CHECKPOINTS / "model_batch_at_00080.weights.h5") for folder in (single, tmp_path))
    for key, value in a.items():
        if value.dtype.kind == "f":
            assert abs(b[key] - value).max() <= 1e-4 * max(abs(value).max(), 1e-30), key


def test_however_slurm_requeues_a_job_it_resumes_and_ends_with_the_same_bits(submit, tmp_path, cluster):
    """Both engines give the same bits with two ranks, because a sum of two numbers has one order."""
    job = submit("-N2", recipe=[*RECIPE, "--strategy", "horovod"])
    events = (preempt_with_cancel, requeue, lose_a_node, preempt)
    for attempt, event in enumerate(events, 1):
        wait_for_training(job, tmp_path, attempt)
        event(cluster, job)
    hurry(tmp_path)
    whole = train_in_ranks(2, RECIPE, tmp_path / "whole", "multiworker")
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == len(events), job.output
    assert_same_weights(whole, last(tmp_path))


def requeue(cluster, job):
    cluster.run("scontrol", "requeue", job.number)


def lose_a_node(cluster, job):
    attempt, node = job.restarts, cluster.run("scontrol", "show", "hostnames", job.show("NodeList")).split()[1]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    wait_for(lambda: job.restarts > attempt, "the requeue")
    cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)  # it may have resumed already


def preempt(cluster, job):
    urgent = cluster.submit("-N3", "--partition=urgent", "--exclusive", "--wrap=sleep 1", cwd=job.folder)
    assert urgent.end() == "COMPLETED"


def preempt_with_cancel(cluster, job):
    cluster.run("scontrol", "update", "PartitionName=main", "PreemptMode=CANCEL")
    preempt(cluster, job)
    cluster.run("scontrol", "update", "PartitionName=main", "PreemptMode=REQUEUE")
    assert re.search(r"stopped +by TERM( on another rank)?; the same command resumes from", job.output), job.output
    assert "has saved and is requeued" in job.output  # by the batch file, and not by Slurm


def test_warnings_in_the_first_second_requeue_and_the_run_completes(submit, tmp_path):
    recipe, jobs = [*SHORT, "--epochs", 1], []
    for i in range(4):
        folder = tmp_path / str(i)
        folder.mkdir()
        job = submit(script=HOROVOD if i % 2 else MIRRORED, recipe=recipe, cwd=folder)
        job.wait_for_attempt(1)
        time.sleep(i / 3)
        job.signal("USR1", "--batch")
        jobs.append((job, folder))
    train(recipe, tmp_path)
    for job, folder in jobs:
        assert job.end(400) == "COMPLETED", job.output
        assert job.restarts == 1, job.output
        assert_same_weights(last(tmp_path), last(folder))


def test_a_warning_that_kills_a_task_before_it_trains_requeues_the_job(submit, tmp_path):
    """Stands for the moment between the start of a task and its first command, which no test can hit."""
    python = tmp_path / "python"
    dies = PROGRAMS / "killed_by_usr1.py"
    python.write_text(f'#!/bin/bash\n((SLURM_RESTART_COUNT)) || exec {sys.executable} {dies}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = submit(recipe=[*SHORT, "--epochs", 1], PYTHON=python)
    job.wait_for_attempt(1)
    job.signal("USR1", "--batch")
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 1
    assert "was warned before it trained and is requeued" in job.output
    assert checkpoints(tmp_path) == ["model_batch_at_00022.weights.h5"]


def test_a_crash_of_one_rank_fails_the_job(submit, tmp_path):
    job = submit("-N2")
    wait_for_batch(tmp_path, 30)
    os.kill(rank_of(job, "1"), signal.SIGKILL)
    assert job.end() == "FAILED", job.output
    assert job.show("ExitCode") == "137:0"
    assert job.restarts == 0


def rank_of(job, rank):
    """Returns the process of a rank of the job."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if {f"SLURM_JOB_ID={job.number}".encode(), f"RANK={rank}".encode()} <= set(environment):
            return int(path.name)
    raise AssertionError(f"no rank {rank}")


def test_before_its_time_limit_a_job_saves_and_is_requeued_and_a_cancelled_job_saves_and_is_not(submit, cluster, tmp_path):
    job = submit("--time=1", "--signal=B:USR1@15", script=MIRRORED, recipe=LONG)
    job.wait_for_attempt(2)
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")  # no warning comes before the end of this test
    assert "has saved and is requeued" in job.output
    assert "DUE TO TIME LIMIT" not in job.output
    wait_for_training(job, tmp_path, 2)
    assert job.output.count("begins       from runs/mnist") == 1
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED", job.output
    wait_for(lambda: job.output.count("; the same command resumes from") == 2, "the save")
    assert job.restarts == 1
    assert not [path for path in (tmp_path / CHECKPOINTS).iterdir() if path.name.startswith(".")]


def test_an_old_attempt_that_slurm_has_lost_cannot_commit_a_checkpoint(submit, cluster, tmp_path):
    job = submit(script=MIRRORED, recipe=LONG)
    wait_for(lambda: checkpoints(tmp_path), "a checkpoint")  # any, because each exists for a moment
    node, old = job.show("NodeList"), rank_of(job, "0")
    cluster.kill_slurmd(node)
    try:
        job.wait_for_attempt(2, timeout=120)
        assert job.show("NodeList") != node
        os.kill(old, 0)  # the old attempt continues
        log = tmp_path / "runs/logs" / job.number / "rank-0.log"
        wait_for(lambda: "a later attempt of this run, took the lock" in log.read_text(), "the end of the old attempt", timeout=120)
        wait_for(lambda: not Path(f"/proc/{old}").exists(), "the end of the old attempt")
    finally:
        cluster.start_node(node)
    assert "begins       from runs/mnist" in job.output
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"
    damaged = subprocess.run(
        [sys.executable, "-m", "callbacks", "verify", tmp_path / "runs/mnist/checkpoints"], cwd=ROOT, check=False
    )
    assert damaged.returncode == 0


def test_a_job_is_not_requeued_more_often_than_max_requeues(submit, tmp_path):
    job = submit("-N1", recipe=LONG, MAX_REQUEUES="1")
    for attempt in (1, 2):
        wait_for(
            lambda attempt=attempt: job.output.count("begins  ") == attempt,
            f"training in attempt {attempt}: {job.output}",
            timeout=120,
        )
        wait_for(lambda: checkpoints(tmp_path), "a checkpoint", timeout=120)
        job.signal("USR1", "--batch")
    assert job.end() == "FAILED", job.output
    assert job.restarts == 1 and job.show("ExitCode") == "75:0"
    assert "not requeued: the job was requeued 1 times (MAX_REQUEUES)" in job.output
