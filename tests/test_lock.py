"""One run per template: a second one is refused, and nobody waits for the dead."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, USER_ENVIRONMENT
from small import fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError
from callbacks.lock import SILENCE, Lock, Owner, is_dead

HOLD = """
import sys, time
from callbacks.lock import Lock
Lock(sys.argv[1], sys.argv[2]).acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """A living process that holds a template."""
    started = []

    def start(template, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, template, tmp_path],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**USER_ENVIRONMENT, **environment},
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_is_refused_by_name_until_the_first_is_dead(tmp_path, hold):
    template = str(tmp_path / "b{batch}.weights.h5")
    first = hold(template)
    with pytest.raises(InputError, match=rf"in use by another run: process {first.pid} on {os.uname().nodename}, since 20"):
        fit(small_model(), GlobalStepCheckpoint(template))
    assert names(tmp_path) == []
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "other{batch}.weights.h5")))  # another template is no obstacle
    first.send_signal(signal.SIGKILL)
    first.wait()
    fit(small_model(), GlobalStepCheckpoint(template))
    assert names(tmp_path) == ["b10.weights.h5", "other10.weights.h5"]
    assert not list(tmp_path.glob(".lock*"))


def test_an_earlier_life_of_the_same_slurm_job_is_no_obstacle_and_another_job_is(tmp_path, hold, monkeypatch):
    template = str(tmp_path / "b{batch}.weights.h5")
    hold(template, SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(InputError, match="in use by another run"):
        Lock(template, str(tmp_path)).acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    lock = Lock(template, str(tmp_path))
    lock.acquire()
    lock.release()


def test_a_holder_that_has_been_silent_is_no_obstacle_wherever_it_is(tmp_path, hold):
    template = str(tmp_path / "b{batch}.weights.h5")
    first = hold(template)
    first.send_signal(signal.SIGSTOP)
    lock = Lock(template, str(tmp_path))
    ago = time.time() - SILENCE - 1
    os.utime(lock.path, (ago, ago))
    lock.acquire()
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTERM)
    first.wait()
    assert os.path.exists(lock.path)  # the one that lost it does not take it away
    lock.release()
    assert not os.path.exists(lock.path)


ME = Owner(host="here", pid=10, started=500, job="7", restart=2, since="")


@pytest.mark.parametrize(
    "holder, silent_for, dead",
    [
        (dict(host="elsewhere", pid=11, job="8"), 0, False),
        (dict(host="elsewhere", pid=11, job="8"), SILENCE - 1, False),
        (dict(host="elsewhere", pid=11, job="8"), SILENCE + 1, True),
        (dict(host="elsewhere", pid=11, restart=1), 0, True),  # an earlier life of this job
        (dict(host="elsewhere", pid=11, restart=2), 0, False),  # this very life: another task of the job
        (dict(host="elsewhere", pid=11, restart=3), 0, False),  # a later life: we are the one to go
        (dict(host="elsewhere", pid=11, job="", restart=0), 0, False),
        (dict(pid=os.getpid(), job=""), 0, True),  # a pid that is used again: it started at another time
        (dict(pid=2**22 + 1, job=""), 0, True),  # no such process
    ],
)
def test_when_a_holder_counts_as_dead(holder, silent_for, dead):
    assert is_dead(dataclasses.replace(ME, **holder), dataclasses.replace(ME, host="here"), silent_for) is dead


def test_what_a_process_left_that_was_killed_while_it_took_the_lock_is_swept(tmp_path):
    lock = Lock("b{batch}.keras", str(tmp_path))
    for suffix in ("", ".abc"):
        with open(lock.path + suffix, "w") as file:
            file.write('{"ho')
    lock.acquire()
    assert [str(path) for path in tmp_path.iterdir()] == [lock.path]
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_nobody_can_read_is_no_obstacle(tmp_path):
    lock = Lock("b{batch}.keras", str(tmp_path))
    for content in ("", "no json", '{"owner": "of another version"}'):
        with open(lock.path, "w") as file:
            file.write(content)
        lock.acquire()
        lock.release()
    assert list(tmp_path.iterdir()) == []
