"""The table in slurm/README.md: what each event of Slurm does to a run, on a real cluster with real training."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compare import assert_same_weights
from launching import wait_for
from processes import PROGRAMS, ROOT, USER_ENVIRONMENT
from slurm_jobs import ENVIRONMENT, HOROVOD, LONG, MIRRORED, RECIPE, checkpoints, last, wait_for_batch

pytestmark = pytest.mark.slow
ENDLESS = [*RECIPE[:4], "--epochs", 1000000, "--save-freq", 500, "--keep-last", 2]


@pytest.fixture(scope="module")
def uninterrupted(cluster, tmp_path_factory):
    """The folder of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    job = cluster.submit("-N2", HOROVOD, *RECIPE, cwd=folder, env=ENVIRONMENT)
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 0
    return folder


def assert_same_end(job, folder, uninterrupted, restarts=1):
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == restarts, job.output
    assert_same_weights(last(uninterrupted), last(folder))


@pytest.mark.parametrize("name, engine", [("USR1", "horovod"), ("USR2", "horovod"), ("USR1", "multiworker")])
def test_after_a_warning_the_job_saves_is_requeued_and_resumes(submit, tmp_path, uninterrupted, name, engine):
    """Both engines give the same bits with two ranks, because a sum of two numbers has one order."""
    job = submit("-N2", recipe=[*RECIPE, "--strategy", engine])
    wait_for_batch(tmp_path, 40)
    job.signal(name, "--batch")
    assert_same_end(job, tmp_path, uninterrupted)
    assert "has saved and is requeued" in job.output


def test_after_a_warning_two_ranks_on_each_of_two_nodes_resume_with_the_same_bits(submit, tmp_path, engine):
    jobs = {}
    for name in ("whole", "warned"):
        (tmp_path / name).mkdir()
        recipe = [*RECIPE, "--strategy", engine]
        jobs[name] = submit("-N2", recipe=recipe, cwd=tmp_path / name, NPROC_PER_NODE="2")
    wait_for_batch(tmp_path / "warned", 40)
    jobs["warned"].signal("USR1", "--batch")
    for name, restarts in (("whole", 0), ("warned", 1)):
        assert jobs[name].end() == "COMPLETED", jobs[name].output
        assert jobs[name].restarts == restarts
        assert f"{engine}, 4 replicas" in jobs[name].output
    assert_same_weights(last(tmp_path / "whole"), last(tmp_path / "warned"))


def test_warnings_in_the_first_second_requeue_and_the_run_completes(submit, tmp_path):
    recipe, newest, jobs = [*RECIPE[:4], "--epochs", 1], "runs/mnist/checkpoints/model_batch_at_00022.weights.h5", []
    command = [sys.executable, *map(str, recipe)]
    subprocess.run(command, cwd=tmp_path, env={**USER_ENVIRONMENT, **ENVIRONMENT}, check=True, capture_output=True)
    for i in range(4):
        folder = tmp_path / str(i)
        folder.mkdir()
        job = submit(script=HOROVOD if i % 2 else MIRRORED, recipe=recipe, cwd=folder)
        job.wait_for_attempt(1)
        time.sleep(i / 3)
        job.signal("USR1", "--batch")
        jobs.append((job, folder))
    for job, folder in jobs:
        assert job.end(400) == "COMPLETED", job.output
        assert job.restarts == 1, job.output
        assert_same_weights(tmp_path / newest, folder / newest)


def test_a_warning_that_kills_a_task_before_it_trains_requeues_the_job(submit, tmp_path):
    """Stands for the moment between the start of a task and its first command, which no test can hit."""
    python = tmp_path / "python"
    dies = PROGRAMS / "killed_by_usr1.py"
    python.write_text(f'#!/bin/bash\n((SLURM_RESTART_COUNT)) || exec {sys.executable} {dies}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = submit(recipe=[*RECIPE[:4], "--epochs", 1], PYTHON=python)
    job.wait_for_attempt(1)
    job.signal("USR1", "--batch")
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 1
    assert "was warned before it trained and is requeued" in job.output
    assert checkpoints(tmp_path) == ["model_batch_at_00022.weights.h5"]


def test_a_cancelled_job_saves_and_stays_cancelled(submit, tmp_path, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED", job.output
    wait_for(lambda: "; the same command resumes from" in job.output, "the save")
    assert job.restarts == 0
    assert not [path for path in (tmp_path / "runs/mnist/checkpoints").iterdir() if path.name.startswith(".")]


def test_a_crash_of_one_rank_fails_the_job(submit, tmp_path):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
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


def test_after_scontrol_requeue_the_job_saves_and_resumes(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    cluster.run("scontrol", "requeue", job.number)
    assert_same_end(job, tmp_path, uninterrupted)


def test_a_node_that_goes_down_requeues_the_job(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    node = cluster.run("scontrol", "show", "hostnames", job.show("NodeList")).split()[1]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        assert_same_end(job, tmp_path, uninterrupted)
    finally:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)  # it may have resumed already


def test_a_preempted_job_saves_is_requeued_and_resumes(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    urgent = cluster.submit("-N3", "--partition=urgent", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    assert urgent.end() == "COMPLETED"
    assert_same_end(job, tmp_path, uninterrupted)


def test_before_its_time_limit_a_job_saves_is_requeued_and_resumes(submit, cluster):
    job = submit("--time=1", "--signal=B:USR1@15", script=MIRRORED, recipe=ENDLESS)
    job.wait_for_attempt(2, timeout=180)
    assert "has saved and is requeued" in job.output
    assert "DUE TO TIME LIMIT" not in job.output
    wait_for(lambda: "begins       from runs/mnist" in job.output, "the second attempt", timeout=120)
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"


def test_an_old_attempt_that_slurm_has_lost_cannot_commit_a_checkpoint(submit, cluster, tmp_path):
    job = submit(script=MIRRORED, recipe=ENDLESS)
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


def test_a_job_that_preemption_cancels_saves_and_is_requeued_by_the_batch_file(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2", "--partition=cancelled")
    wait_for_batch(tmp_path, 40)
    urgent = cluster.submit("-N3", "--partition=urgent", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    assert urgent.end() == "COMPLETED"
    assert_same_end(job, tmp_path, uninterrupted)
    assert re.search(r"stopped +by TERM( on another rank)?; the same command resumes from", job.output), job.output


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
