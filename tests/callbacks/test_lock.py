"""One run per template: a second run is refused, and no run waits for a dead one."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import PROGRAM_ENVIRONMENT, PROGRAMS
from small import Do, fail, fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError
from callbacks.disk import lock
from callbacks.disk.lock import SILENCE, Lock, LockLost, Owner, is_dead


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds a template."""
    started = []

    def start(template, *, before=(), **environment):
        process = subprocess.Popen(
            [*before, sys.executable, PROGRAMS / "hold_lock.py", template, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            env={**PROGRAM_ENVIRONMENT, **environment},
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
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "other{batch}.weights.h5")))  # another template does not block the run
    first.send_signal(signal.SIGKILL)
    first.wait()
    fit(small_model(), GlobalStepCheckpoint(template))
    assert names(tmp_path) == ["b10.weights.h5", "other10.weights.h5"]
    assert not list(tmp_path.glob(".lock*"))


def test_an_earlier_attempt_of_the_same_slurm_job_does_not_block_a_run_and_another_job_does(tmp_path, hold, monkeypatch):
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


def test_a_silent_holder_does_not_block_a_run_on_any_host(tmp_path, hold):
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
    assert os.path.exists(lock.path)  # the process that lost the lock does not remove it
    lock.release()
    assert not os.path.exists(lock.path)


def test_a_holder_in_another_container_of_the_same_host_name_is_refused_until_it_is_silent(tmp_path, hold):
    in_container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*in_container, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespace can be made here")
    template = str(tmp_path / "b{batch}.weights.h5")
    hold(template, before=in_container)
    taker = Lock(template, str(tmp_path))
    with pytest.raises(InputError, match=r"in use by another run: process \d on"):
        taker.acquire()
    ago = time.time() - SILENCE - 1
    os.utime(taker.path, (ago, ago))
    taker.acquire()
    taker.release()


def test_the_lock_of_an_older_version_names_a_holder_by_host_and_process(tmp_path):
    taker = Lock("b{batch}.keras", str(tmp_path))
    with subprocess.Popen(["sleep", "600"]) as holder:
        started = int(Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[19])
        owner = {"host": os.uname().nodename, "pid": holder.pid, "started": started, "job": "", "restart": 0, "since": "2025"}
        Path(taker.path).write_text(json.dumps(owner))
        with pytest.raises(InputError, match=f"process {holder.pid}"):
            taker.acquire()
        holder.kill()
    taker.acquire()
    taker.release()


ME = Owner(host="here", pid=10, started=500, job="7", restart=2, since="", boot="b1", pid_namespace="n1")


@pytest.mark.parametrize(
    "holder, silent_for, dead",
    [
        (dict(host="elsewhere", pid=11, job="8"), 0, False),
        (dict(host="elsewhere", pid=11, job="8"), SILENCE - 1, False),
        (dict(host="elsewhere", pid=11, job="8"), SILENCE + 1, True),
        (dict(host="elsewhere", pid=11, restart=1), 0, True),  # an earlier attempt of this job
        (dict(host="elsewhere", pid=11, restart=2), 0, False),  # the same attempt: another task of the job
        (dict(host="elsewhere", pid=11, restart=3), 0, False),  # a later attempt: this one must end
        (dict(host="elsewhere", pid=11, job="", restart=0), 0, False),
        (dict(pid=os.getpid(), job=""), 0, True),  # a reused pid: the process started at another time
        (dict(pid=2**22 + 1, job=""), 0, True),  # no such process
        (dict(pid=2**22 + 1, job="", boot="", pid_namespace=""), 0, True),  # the same, in a lock of an older version
        (dict(pid=2**22 + 1, job="", boot="b2"), 0, False),  # possibly another machine with the same name
        (dict(pid=2**22 + 1, job="", boot="b2"), SILENCE + 1, True),
        (dict(pid=2**22 + 1, job="", pid_namespace="n2"), 0, False),  # another container of this host
        (dict(pid=2**22 + 1, job="", pid_namespace="n2"), SILENCE + 1, True),
        (dict(pid=2**22 + 1, boot="b2", restart=1), 0, True),
    ],
)
def test_when_a_holder_counts_as_dead(holder, silent_for, dead):
    assert is_dead(dataclasses.replace(ME, **holder), dataclasses.replace(ME, host="here"), silent_for) is dead


def test_files_of_a_process_that_was_killed_while_taking_the_lock_are_deleted(tmp_path):
    lock = Lock("b{batch}.keras", str(tmp_path))
    for suffix in ("", ".abc"):
        with open(lock.path + suffix, "w") as file:
            file.write('{"ho')
    lock.acquire()
    assert [str(path) for path in tmp_path.iterdir()] == [lock.path]
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_lock_does_not_block_a_run(tmp_path):
    lock = Lock("b{batch}.keras", str(tmp_path))
    owner = dataclasses.asdict(Owner.this_process())
    wrong = [
        json.dumps(owner | changes) for changes in ({"pid": "1"}, {"pid": 1 << 70}, {"pid": 0}, {"restart": None}, {"boot": 7})
    ]
    for content in ("", "no json", '{"owner": "of another version"}', "[" * 50_000, "\udcff", "7", *wrong):
        with open(lock.path, "w", errors="surrogateescape") as file:
            file.write(content)
        lock.acquire()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_restart_count_means_the_first_attempt(monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "x")
    assert Owner.this_process().restart == 0


@pytest.fixture
def umask():
    """Sets the umask of this process for the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_the_mode_of_the_lock_follows_the_umask(tmp_path, umask, mask):
    umask(mask)
    held = Lock("b{batch}.keras", str(tmp_path))
    held.acquire()
    assert os.stat(held.path).st_mode & 0o777 == 0o666 & ~mask
    held.release()


def test_another_user_is_refused_in_one_line_and_takes_over_from_a_dead_run(umask, monkeypatch):
    monkeypatch.setattr(lock, "_HEARTBEAT", 600)  # the test stops the renewal of the lock
    if os.geteuid():
        pytest.skip("only root can act as another user")
    directory = tempfile.mkdtemp()  # not under tmp_path, which other users cannot enter
    os.chmod(directory, 0o777)

    command = [sys.executable, PROGRAMS / "take_locks.py", "b{batch}.keras", directory]
    process = subprocess.Popen(command, env=PROGRAM_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def other_user():
        process.stdin.write("\n")
        process.stdin.flush()
        return process.stdout.readline()

    try:
        held = Lock("b{batch}.keras", directory)
        held.acquire()
        assert f"in use by another run: process {os.getpid()}" in other_user()
        os.chmod(held.path, 0o600)
        assert (
            other_user()
            == f"The lock {held.path} cannot be read or written: Permission denied. Use another template or directory.\n"
        )
        os.chmod(held.path, 0o644)
        ago = time.time() - SILENCE - 1
        os.utime(held.path, (ago, ago))
        assert other_user() == "taken\n"
        held.release()
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(directory)


def test_a_disk_error_does_not_stop_the_renewal_of_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_HEARTBEAT", 0.02)
    held, aside = Lock("b{batch}.keras", str(tmp_path)), tmp_path / "aside"
    held.acquire()
    os.rename(held.path, aside)
    os.mkdir(held.path)  # reading it is an error
    time.sleep(0.2)
    os.rmdir(held.path)
    os.utime(aside, (0, 0))
    os.rename(aside, held.path)
    deadline = time.monotonic() + 300
    while os.stat(held.path).st_mtime == 0:
        assert time.monotonic() < deadline, "no sign of life"
        time.sleep(0.01)
    held.release()


def test_a_lock_that_cannot_be_read_is_named_in_one_line(tmp_path):
    held = Lock("b{batch}.keras", str(tmp_path))
    held.acquire()
    os.unlink(held.path)
    os.mkdir(held.path)
    with pytest.raises(LockLost, match=f"^The lock {held.path} cannot be read or written: it is not a regular file$"):
        held.check()
    held.release()
    with pytest.raises(InputError, match=f"^The lock {held.path} cannot be read or written: it is not a regular file. Use another"):
        held.acquire()


def test_a_fifo_instead_of_a_lock_is_named_without_blocking(tmp_path):
    held = Lock("b{batch}.keras", str(tmp_path))
    os.mkfifo(held.path)
    with pytest.raises(InputError, match=f"^The lock {held.path} cannot be read or written: it is not a regular file"):
        held.acquire()


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_jumps_does_not_keep_a_dead_run_alive(tmp_path, jump):
    """The dead run is on another host, where only silence counts."""
    taker = Lock("b{batch}.keras", str(tmp_path))
    holder = dataclasses.replace(Owner.this_process(), host="elsewhere")
    Path(taker.path).write_text(json.dumps(dataclasses.asdict(holder)))
    with pytest.raises(InputError, match="in use by another run"):
        taker.acquire()
    os.utime(taker.path, (time.time() - jump,) * 2)  # the timestamp of the last renewal after the jump
    taker.acquire()
    taker.release()


def test_the_exit_of_a_forked_process_leaves_the_lock_of_its_parent(tmp_path):
    held = Lock("b{batch}.keras", str(tmp_path))
    held.acquire()
    if not (child := os.fork()):
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    held.check()
    held.release()


def test_a_failed_fit_does_not_block_another_process(tmp_path, hold):
    template = str(tmp_path / "b{batch}.weights.h5")
    with pytest.raises(InterruptedError):
        fit(small_model(), GlobalStepCheckpoint(template, save_freq=5), Do(5, fail))
    deadline = time.monotonic() + 300
    while list(tmp_path.glob(".*")):
        assert time.monotonic() < deadline, "the lock is still there"
        time.sleep(0.01)
    assert names(tmp_path) == ["b5.weights.h5"]  # the running write completes first
    hold(template)


def test_a_custom_training_loop_holds_the_lock_until_its_thread_starts_another_or_ends(tmp_path):
    def take():
        Lock("b{batch}.keras", str(tmp_path)).acquire()

    take()
    take()
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="in use by another training loop of this process"):
        pool.submit(take).result()
    Path(Lock("b{batch}.keras", str(tmp_path)).path).unlink()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(take).result()
    take()


def test_a_run_that_has_lost_its_lock_saves_nothing(tmp_path):
    first, second = Lock("b{batch}.keras", str(tmp_path)), Lock("b{batch}.keras", str(tmp_path))
    first.acquire()
    second.acquire()  # in the same second, by the same process
    with pytest.raises(LockLost, match="took the lock"):
        first.check()
    first.release()
    second.check()
    second.release()
    assert list(tmp_path.iterdir()) == []
