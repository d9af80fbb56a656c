"""The coordinator on node 0: starts and ends the ranks of all nodes together, and decides what follows a failure."""

import dataclasses
import select
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch import console, exit_codes
from launch.command_line.config import LaunchConfig
from launch.horovod import rendezvous_server
from launch.network.messages import (
    AttemptEnded,
    EndRanks,
    Event,
    ExitRecord,
    NodeLost,
    Notice,
    RankExited,
    RankStalled,
    SendSignal,
    SignalReceived,
    Start,
)
from launch.run.nodes import Node
from launch.run.report import Failure, failure_of, format_report
from launch.run.restarts import Restarts
from launch.signals import Signals, Stopped
from launch.world import WorldSpec

CAUSE_WAIT = 10.0  # seconds to wait for the rank that failed first, after a rank has exited because it lost another rank
UNREACHABLE = 15.0  # seconds to wait until a node reports the end of its ranks, before it counts as lost


class Attempt:
    """One attempt: all ranks, from their start to the end of the last one.

    Args:
        config: the configuration of this launcher.
        nodes: all nodes by number; node 0 is this one.
        signals: the signals that this launcher receives.
        gone: the numbers of lost nodes; the attempt adds to them.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        config: LaunchConfig,
        nodes: Mapping[int, Node],
        signals: Signals,
        gone: set[int],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._config, self._nodes, self._signals, self._gone, self._clock = config, nodes, signals, gone, clock
        self._running = set(nodes) - gone
        self._received: set[int] = set()  # by this launcher; `_forwarded` may contain signals of other launchers
        self._forwarded: list[int] = []
        self._deadline = float("inf")
        self._ends = False
        self._victim: Failure | None = None  # the failure of a rank that exited because it lost another rank
        self._exits: list[ExitRecord] = []  # in chronological order
        self.failure: Failure | None = None
        self.records: dict[int, tuple[str, ExitRecord]] = {}  # by rank: its host and exit record

    def run(self) -> int:
        """Waits until all ranks of all nodes have ended. Returns the exit code of the run."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            for number in self._running:
                selector.register(self._nodes[number], selectors.EVENT_READ, lambda number=number: self._on_events(number))
            while self._running:
                wait = None if self._deadline == float("inf") else max(0, self._deadline - self._clock())
                for key, _ in selector.select(wait):
                    key.data()
                    if getattr(key.fileobj, "gone", False):
                        selector.unregister(key.fileobj)
                if self._clock() >= self._deadline:
                    self._on_deadline()
        self.failure = self.failure or self._victim
        return self._code()

    @property
    def was_stopped(self) -> bool:
        """Whether a signal has stopped the attempt."""
        return bool(self._forwarded)

    @property
    def batch(self) -> int | None:
        """The highest batch that any rank has reported."""
        return max((record.batch for _, record in self.records.values() if record.batch is not None), default=None)

    def _code(self):
        ended = [exit_codes.of_process(record.code) for record in self._exits]
        code = self.failure.code if self.failure else next((code for code in ended if code), exit_codes.DONE)
        return exit_codes.INTERRUPTED if code and not self.failure and signal.SIGINT in self._forwarded else code

    def _order(self, order):
        for number in self._running:
            self._nodes[number].send(order)

    def _on_signals(self):
        for number in self._signals.received():
            again = number == signal.SIGINT and number in self._received
            self._received.add(number)
            self._forward(number)
            if again:
                self._end(signal.SIGKILL)
                console.say("interrupted twice: ending the ranks at once")

    def _forward(self, number):
        """Forwards each signal once, because Slurm sends TERM twice and several launchers may receive the same signal."""
        if number in self._forwarded:
            return
        if not self._forwarded and not self._ends:
            self._deadline = min(self._deadline, self._clock() + self._config.grace)
        self._forwarded.append(number)
        self._order(SendSignal(signal.Signals(number)))

    def _on_events(self, number):
        for event in self._nodes[number].events():
            self._on_event(number, event)

    def _on_event(self, number: int, event: Event) -> None:
        host = self._nodes[number].host
        match event:
            case RankExited():
                self._on_exit(host, event)
            case RankStalled(rank, batch, stopped, seconds):
                how = "was stopped (SIGSTOP)" if stopped else "made no progress"
                line = f"rank {rank} on {host}: {how} for {seconds:g} s"
                self._fail(Failure(line, exit_codes.FAILED, rank, batch=batch), signal.SIGABRT)
            case SignalReceived(received):
                self._forward(received)
            case Notice(text):
                console.say(f"{host}: {' '.join(text.split())}")
            case NodeLost(why):
                self._on_lost(number, " ".join(why.split()))
            case AttemptEnded(records):
                self.records |= {record.rank: (host, record) for record in records}
                self._running.discard(number)

    def _on_exit(self, host, event):
        record = event.record
        self._exits.append(record)
        if self.failure and self.failure.rank == record.rank and not self.failure.log:  # a stalled rank has now printed its stacks
            self.failure = dataclasses.replace(self.failure, tail=event.tail, log=record.log)
        stopped = self._forwarded and (record.code in exit_codes.STOPPED or -record.code in (*self._forwarded, signal.SIGKILL))
        if not record.code or self._ends or stopped:
            return
        if record.code != exit_codes.ANOTHER_RANK_FAILED:
            self._fail(failure_of(host, event), signal.SIGTERM)
        elif self._victim is None:
            self._victim = failure_of(host, event)
            self._deadline = min(self._deadline, self._clock() + CAUSE_WAIT)

    def _on_lost(self, number, why):
        if number in self._gone:
            return
        self._gone.add(number)
        if number in self._running:
            self._running.discard(number)
            failure = Failure(f"node {number}: {why}", exit_codes.FAILED)
            self._fail(failure, signal.SIGTERM)
            self.failure = self.failure or failure  # also while ranks are being ended, because the end of these ranks is unknown

    def _fail(self, failure, number):
        """Ends all ranks after the first failure."""
        if self.failure is None and not self._ends:
            self.failure = failure
            self._end(number)

    def _end(self, number):
        self._ends = True
        self._order(EndRanks(signal.Signals(number)))
        self._deadline = self._clock() + UNREACHABLE

    def _on_deadline(self):
        if self._ends:
            for number in list(self._running):
                self._on_lost(number, "does not answer")
            self._deadline = float("inf")
        elif self._victim:
            self._fail(self._victim, signal.SIGTERM)
        else:
            self._end(signal.SIGKILL if signal.SIGTERM in self._forwarded else signal.SIGTERM)
            console.say(f"the ranks did not end within {self._config.grace:g} s (--grace)")


def coordinate(config: LaunchConfig, nodes: Mapping[int, Node], signals: Signals, world: WorldSpec, server: Any) -> tuple[int, str]:
    """Runs attempts until one succeeds or no further attempt is allowed.

    Args:
        config: the configuration of this launcher.
        nodes: all nodes by number; node 0 is this one.
        signals: the signals that this launcher receives.
        world: the run.
        server: Horovod's rendezvous server, or None.

    Returns:
        The exit code of the run, and one line that explains an exit code other than 0.
    """
    restarts, gone = Restarts(config.max_restarts), set[int]()
    while True:
        if server is not None:
            rendezvous_server.begin_attempt(server, world)
        attempt = Attempt(config, nodes, signals, gone)
        for node in nodes.values():
            node.start(Start(world, config.stall_timeout, config.monitor_interval))
        code = attempt.run()
        if not attempt.failure:
            return code, "stopped by a signal" if code else ""
        console.show(format_report(attempt.failure, attempt.records.values()))
        if attempt.was_stopped:
            return code, attempt.failure.line
        if gone and config.max_restarts:
            console.say("not restarted: a restart needs all nodes")
        decision = None if gone else restarts.after_failure(code, attempt.batch)
        if decision and decision.why:
            console.say(decision.why)
        if not decision or decision.wait is None:
            return code, attempt.failure.line
        _wait_between(decision.wait, signals, list(nodes.values()))
        world = dataclasses.replace(world, restarts=world.restarts + 1)


def _wait_between(seconds: float, signals: Signals, nodes: Sequence[Node]) -> None:
    """Waits between two attempts. A signal to any launcher raises `Stopped`; the loss of a node ends the wait."""
    sources: list[Any] = [signals, *nodes]
    ready, _, _ = select.select(sources, [], [], seconds)
    signals.check()
    for node in nodes:
        for event in node.events() if node in ready else ():
            if isinstance(event, SignalReceived):
                raise Stopped(event.number)
