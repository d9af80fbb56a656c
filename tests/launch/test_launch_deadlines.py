"""Deadlines for processes and nodes that do not answer. Tests control the clock."""

import itertools
import signal
import socket
import subprocess
from types import SimpleNamespace

import pytest
from launching import PATIENCE
from processes import run_program

from launch import exit_codes
from launch.network.connection import Connection
from launch.network.messages import AttemptEnded, EndRanks, ExitRecord, Leave, NodeLost, RankExited, SendSignal, Start
from launch.run.coordinator import Attempt
from launch.run.node_worker import NodeWorker
from launch.run.nodes import RemoteNode
from launch.world import WorldSpec

CONFIG = SimpleNamespace(grace=30.0, stall_timeout=None)
LOST = exit_codes.ANOTHER_RANK_FAILED


class FakeSignals:
    """Signals that a launcher has received."""

    def __init__(self, *numbers):
        self._numbers = list(numbers)
        self._reader, writer = socket.socketpair()
        if numbers:
            writer.send(b"x")
        self._writer = writer

    def fileno(self):
        return self._reader.fileno()

    def received(self):
        self._reader.setblocking(False)
        self._reader.recv(100)
        numbers, self._numbers = self._numbers, []
        return numbers


def attempt_of(*events, signals=()):
    """Returns an attempt on two nodes that report these events, (node, event), and the orders that the nodes received."""
    nodes, ends = {}, {}
    for number in range(2):
        ours, theirs = socket.socketpair()
        nodes[number] = RemoteNode(number, f"host{number}", Connection(ours), range(number, number + 1), "10.0.0.1")
        ends[number] = Connection(theirs)
        theirs.setblocking(False)
    for number, event in events:
        ends[number].send(event)
    jumps = itertools.count(0, 100).__next__  # every reading of the clock is past every deadline
    attempt = Attempt(CONFIG, nodes, FakeSignals(*signals), set(), clock=jumps)
    code = attempt.run()
    return attempt, code, {number: end.receive() for number, end in ends.items()}


def exited(rank, code, tail=""):
    return RankExited(ExitRecord(rank, code, None, "log", 0), False, tail)


def test_a_node_that_does_not_end_its_ranks_counts_as_lost():
    attempt, code, ordered = attempt_of((0, exited(0, 3, "boom")))
    assert code == 3 and attempt.failure.line == "rank 0 on host0: exit code 3"
    assert ordered[1] == [EndRanks(signal.SIGTERM)]


def test_ranks_that_outlive_the_grace_period_are_ended_and_their_node_counts_as_lost(capfd):
    attempt, code, ordered = attempt_of(signals=[signal.SIGTERM])
    assert ordered[0] == ordered[1] == [SendSignal(signal.SIGTERM), EndRanks(signal.SIGKILL)]
    assert "did not end within 30 s" in capfd.readouterr().err
    assert code == 1 and attempt.failure.line.endswith(": does not answer")  # and not 0: a job would count as complete


def test_a_victim_is_reported_only_if_no_cause_exits_in_time():
    attempt, code, ordered = attempt_of((0, exited(0, LOST)))
    assert code == LOST and attempt.failure.rank == 0
    assert ordered[1] == [EndRanks(signal.SIGTERM)]


@pytest.mark.parametrize(
    "cause, line",
    [(exited(1, -9), "rank 1 on host1: killed by SIGKILL"), (NodeLost("its launcher is gone"), "node 1: its launcher is gone")],
)
def test_a_cause_that_exits_after_its_victim_is_reported(cause, line):
    attempt, _, _ = attempt_of((0, exited(0, LOST)), (1, cause), (0, AttemptEnded((ExitRecord(0, LOST, None, "log", 0),))))
    assert attempt.failure.line == line


@pytest.mark.parametrize(
    ("last", "code", "ordered"),
    [([], 1, [EndRanks(signal.SIGTERM)]), ([EndRanks(signal.SIGABRT), Leave(7, "rank 0 failed")], 7, [EndRanks(signal.SIGABRT)])],
)
def test_a_node_worker_exits_even_if_its_agent_does_not_end_the_ranks(last, code, ordered):
    (ours, agents), (to_zero, of_zero) = socket.socketpair(), socket.socketpair()
    agent, zero = Connection(agents), Connection(of_zero)
    world = WorldSpec(2, 1, "night", "node0", 1, ("a", "b"), ((1,), (2,)), ("", ""))
    for message in [Start(world, None, 0.1), *last]:
        zero.send(message)
    zero.close()
    node = RemoteNode(1, "host1", Connection(ours), range(1, 2), "10.0.0.1")
    worker = NodeWorker(node, Connection(to_zero), "node 0", FakeSignals(), itertools.count(0, 100).__next__)
    assert worker.run() == code
    assert agent.receive() == [Start(world, None, 0.1), *ordered]


@pytest.mark.parametrize("program", ["stuck_agent.py", "kept_agent.py"], ids=["by the launcher", "by the keeper"])
def test_an_agent_that_does_not_end_is_killed_with_its_descendants(program):
    done = run_program(program, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_a_log_that_is_a_pipe_without_a_reader_does_not_end_the_run(launch, tmp_path):
    (tmp_path / "logs").mkdir()
    subprocess.run(["mkfifo", tmp_path / "logs" / "rank-0.log"], check=True)
    code, out, err = launch("--log-dir", "logs", "--no-python", "echo", "hello").finish()
    assert (code, out) == (0, "[0] hello\n") and "rank-0.log is incomplete: " in err
