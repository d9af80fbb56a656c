"""Which ranks the launcher regards as stopped or stalled. Tests control the clock."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
from launching import sh, wait_for

from launch import processes
from launch.node.stalls import LONGEST_PAUSE, STOPPED, Stall, StallDetector

PTRACE_ATTACH, PTRACE_DETACH = 16, 17


class FakeRank:
    """A rank whose progress and state the test sets."""

    def __init__(self, number, batch=10):
        self.number = self.pid = number
        self.batch = batch
        self.moves = self.is_stopped = False

    def moved(self):
        return self.moves


@pytest.fixture
def ranks(monkeypatch):
    found = [FakeRank(0), FakeRank(1)]
    monkeypatch.setattr(processes, "is_stopped", lambda pid: found[pid].is_stopped)
    return found


def watch(detector, ranks, begin, seconds):
    """Checks twice a second. Returns the first stall and its time."""
    for half in range(1, int(2 * seconds) + 1):
        now = begin + half / 2
        if stall := detector.look(ranks, now):
            return now, stall
    return None


def test_a_stopped_rank_is_found_after_its_time_and_a_slow_batch_never(ranks):
    detector = StallDetector(timeout=None, stopped_timeout=5.0, now=0.0)
    assert watch(detector, ranks, 0.0, 3600) is None
    ranks[1].is_stopped = True
    assert watch(detector, ranks, 3600.0, 60) == (3605.5, Stall(ranks[1], True, 5.0))


def test_a_stopped_rank_is_the_cause_although_another_rank_was_silent_first(ranks):
    detector = StallDetector(timeout=2.0, stopped_timeout=5.0, now=0.0)
    ranks[1].moves = True
    assert watch(detector, ranks, 0.0, 1) is None
    ranks[1].moves, ranks[1].is_stopped = False, True
    assert watch(detector, ranks, 1.0, 60) == (2.5, Stall(ranks[1], True, 2.0))


def test_a_rank_that_continues_in_time_is_not_reported(ranks):
    detector = StallDetector(timeout=None, stopped_timeout=5.0, now=0.0)
    for begin in range(0, 100, 10):
        ranks[0].is_stopped = True
        assert watch(detector, ranks, begin, 4.5) is None
        ranks[0].is_stopped = False
        assert watch(detector, ranks, begin + 4.5, 5.5) is None


@pytest.mark.parametrize("timeout", [None, 600.0])
def test_the_time_of_a_job_that_was_suspended_as_a_whole_does_not_count(ranks, timeout):
    detector = StallDetector(timeout, stopped_timeout=5.0, now=0.0)
    ranks[0].moves = ranks[1].moves = True
    assert watch(detector, ranks, 0.0, 10) is None
    ranks[0].moves = ranks[1].moves = False
    ranks[0].is_stopped = ranks[1].is_stopped = True  # the launcher continues first
    assert detector.look(ranks, 10_000.0) is None
    ranks[0].is_stopped = ranks[1].is_stopped = False
    assert watch(detector, ranks, 10_000.0, 500) is None


def test_one_that_is_stopped_alone_is_not_reported_but_one_that_stalls_is(ranks):
    detector = StallDetector(timeout=60.0, stopped_timeout=None, now=0.0)
    ranks[0].is_stopped = True
    assert watch(detector, ranks[:1], 0.0, 300) == (60.5, Stall(ranks[0], True, 60.0))


def test_the_time_is_that_of_the_readme():
    assert STOPPED + LONGEST_PAUSE < 10
    (text,) = (Path(__file__).parents[2] / "README.md").read_text().split("### Survive failures")[1:]
    assert f"(SIGSTOP) for {STOPPED:g} s" in text.partition("\n### ")[0]


def test_a_process_that_a_debugger_holds_does_not_count_as_stopped():
    libc = ctypes.CDLL(None, use_errno=True)
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            if libc.ptrace(PTRACE_ATTACH, process.pid, None, None):
                pytest.skip(f"ptrace: {os.strerror(ctypes.get_errno())}")
            state = Path(f"/proc/{process.pid}/stat")
            wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "t", "the debugger")
            assert not processes.is_stopped(process.pid)
            libc.ptrace(PTRACE_DETACH, process.pid, None, None)
        finally:
            process.kill()


def test_a_stopped_rank_ends_the_run_without_a_flag(launch):
    run = launch("--nproc-per-node", "2", *sh("echo $$ > pid-$RANK; exec sleep 1000"))
    ranks = [run.pid(f"pid-{rank}") for rank in range(2)]
    processes.send([ranks[0]], 19)
    code, _, err = run.finish()
    assert code == 1
    assert err.splitlines()[0] == f"rank 0 on {os.uname().nodename}: was stopped (SIGSTOP) for {STOPPED:g} s"
    assert run.none_left()
