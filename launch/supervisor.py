"""Node 0's part: starts and ends the ranks of all nodes together, and decides what follows a failure."""

import dataclasses
import math
import select
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from launch import exit_codes, horovod_rendezvous
from launch.arguments import Plan
from launch.messages import Link
from launch.node import Node
from launch.report import Failure, failure_of, screen
from launch.restarts import Restarts
from launch.signals import Signals, Stopped
from launch.world import Layout

CAUSE_WAIT = 10.0  # seconds in which the rank that failed first may end, after another one has ended because of it
UNREACHABLE = 15.0  # seconds after which a node that was told to end its ranks, and does not say so, is given up


class Life:
    """All ranks, from their start to the end of the last one.

    Args:
        plan: the run's flags.
        nodes: where to send what a node has to do, by its number; 0 is this one.
        signals: the launcher's.
        gone: nodes that are not there any more; a node that goes is added.
    """

    def __init__(self, plan: Plan, nodes: Mapping[int, Node | Link], signals: Signals, gone: set[int]):
        self._plan, self._nodes, self._signals, self._gone = plan, nodes, signals, gone
        self._running = set(nodes) - gone
        self._heard: set[int] = set()  # by this launcher, where those forwarded may come from another node's
        self._forwarded: list[int] = []
        self._deadline: float | None = None
        self._victim: Failure | None = None  # the failure of a rank that names another one as the cause
        self._ends = False
        self._exits: list[dict[str, Any]] = []  # in the order of time
        self.failure: Failure | None = None
        self.stories: dict[int, dict[str, Any]] = {}

    def run(self) -> int:
        """Waits until every rank of every node is gone. Returns the exit code of the run."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            for number, node in self._nodes.items():
                if number not in self._gone:
                    selector.register(node, selectors.EVENT_READ, lambda number=number: self._on_events(number))
            while self._running:
                wait = None if self._deadline is None else max(0, self._deadline - time.monotonic())
                ready = selector.select(wait)
                for key, _ in ready:
                    key.data()
                for key, _ in ready:
                    if getattr(key.fileobj, "closed", False) or getattr(key.fileobj, "lost", False):
                        selector.unregister(key.fileobj)
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._on_deadline()
        self.failure = self.failure or self._victim
        return self._code()

    @property
    def was_stopped(self) -> bool:
        """The launcher was told to end it."""
        return bool(self._forwarded)

    @property
    def batch(self) -> int | None:
        """The last batch that any rank reported."""
        return max((story["batch"] for story in self.stories.values() if story["batch"] is not None), default=None)

    def _code(self):
        ended = [exit_codes.of_process(story["code"]) for story in self._exits]
        code = self.failure.code if self.failure else next((code for code in ended if code), 0)
        return exit_codes.INTERRUPTED if code and not self.failure and signal.SIGINT in self._forwarded else code

    def _tell(self, message):
        for number in self._running:
            self._nodes[number].send(message)

    def _on_signals(self):
        for number in self._signals.received():
            if number == signal.SIGINT and number in self._heard:
                say("interrupted twice: the ranks are ended at once")
                self._end(signal.SIGKILL)
            self._heard.add(number)
            self._forward(number)

    def _forward(self, number):
        """Once each: Slurm sends TERM twice, and several launchers of a run hear the same."""
        if number in self._forwarded:
            return
        self._forwarded.append(number)
        self._tell({"do": "signal", "number": number})
        if self._deadline is None:
            self._deadline = time.monotonic() + self._plan.grace

    def _on_events(self, number):
        node = self._nodes[number]
        for event in node.events() if isinstance(node, Node) else node.receive():
            self._on_event(number, event)
        if node.closed if isinstance(node, Link) else node.lost:
            self._on_lost(number, "")

    def _on_event(self, number, event):
        kind = event["event"]
        if kind == "exit":
            self._on_exit(event)
        elif kind == "stall":
            how = "was stopped (SIGSTOP)" if event["stopped"] else "made no progress"
            line = f"rank {event['rank']} on {event['host']}: {how} for {self._plan.stall_timeout:g} s"
            self._fail(Failure(line, exit_codes.FAILED, event["rank"], batch=event["batch"]), signal.SIGABRT)
        elif kind == "signal":
            self._forward(event["number"])
        elif kind == "warning":
            say(f"{event['host']}: {event['text']}")
        elif kind == "lost":
            self._on_lost(number, event["why"])
        elif kind == "over":
            self.stories |= {story["rank"]: {**story, "host": event["host"]} for story in event["stories"]}
            self._running.discard(number)

    def _on_exit(self, event):
        self._exits.append(event)
        if self.failure and self.failure.rank == event["rank"] and not self.failure.log:  # a stall: now there are stacks
            self.failure = dataclasses.replace(self.failure, tail=event["tail"], log=event["log"])
        asked = self._forwarded and (event["code"] in exit_codes.STOPPED or -event["code"] in (*self._forwarded, signal.SIGKILL))
        if not event["code"] or self._ends or asked:
            return
        if event["code"] != exit_codes.ANOTHER_RANK_FAILED:
            self._fail(failure_of(event), signal.SIGTERM)
        elif self._victim is None:
            self._victim = failure_of(event)
            self._deadline = min(self._deadline or math.inf, time.monotonic() + CAUSE_WAIT)

    def _on_lost(self, number, why):
        if number in self._gone:
            return
        self._gone.add(number)
        if number in self._running:
            self._running.discard(number)
            self._fail(Failure(f"node {number}: {why or 'its launcher is gone'}", exit_codes.FAILED), signal.SIGTERM)

    def _fail(self, failure, number):
        """The first failure ends everything."""
        if self.failure is None and not self._ends:
            self.failure = failure
            self._end(number)

    def _end(self, number):
        self._ends = True
        self._tell({"do": "end", "number": number})
        self._deadline = time.monotonic() + UNREACHABLE

    def _on_deadline(self):
        if not self._ends and self._victim:
            self._fail(self._victim, signal.SIGTERM)
            return
        if not self._ends:
            say(f"the ranks did not end within {self._plan.grace:g} s (--grace)")
            self._end(signal.SIGKILL if signal.SIGTERM in self._forwarded else signal.SIGTERM)
            return
        for number in list(self._running):
            self._on_lost(number, "it does not answer")
        self._deadline = None


def supervise(plan: Plan, nodes: Mapping[int, Node | Link], signals: Signals, layout: Layout, server: Any) -> tuple[int, str]:
    """Runs life after life, until one ends well or none may follow.

    Args:
        plan: the run's flags.
        nodes: this node, 0, and the links to the others.
        signals: the launcher's.
        layout: the run.
        server: Horovod's rendezvous server, or None.

    Returns:
        The run's exit code, and one line that says why it is not 0.
    """
    restarts, gone = Restarts(plan.max_restarts), set[int]()
    while True:
        if server is not None:
            horovod_rendezvous.begin_life(server, layout)
        life = Life(plan, nodes, signals, gone)
        _start(plan, nodes, layout)
        code = life.run()
        if not life.failure:
            return code, "stopped by a signal" if code else ""
        print(screen(life.failure, life.stories.values()), file=sys.stderr, flush=True)
        if life.was_stopped:
            return code, life.failure.line
        if gone and plan.max_restarts:
            say("not started again: that takes all nodes")
        decision = None if gone else restarts.after_failure(code, life.batch)
        if decision and decision.why:
            say(decision.why)
        if not decision or decision.wait is None:
            return code, life.failure.line
        _rest(decision.wait, signals, [node for node in nodes.values() if isinstance(node, Link)])
        layout = dataclasses.replace(layout, restarts=layout.restarts + 1)


def _rest(seconds, signals, links):
    """Waits between two lives; a signal to any launcher raises `Stopped`, and a node that goes ends the wait."""
    ready, _, _ = select.select([signals, *links], [], [], seconds)
    signals.check()
    for link in set(ready) - {signals}:
        for event in link.receive():
            if event["event"] == "signal":
                raise Stopped(event["number"])


def _start(plan, nodes, layout):
    for node in nodes.values():
        if isinstance(node, Node):
            node.start(layout, plan.stall_timeout, plan.monitor_interval)
        else:
            policy = {"stall_timeout": plan.stall_timeout, "interval": plan.monitor_interval}
            node.send({"do": "start", "layout": dataclasses.asdict(layout), **policy})


def say(text: str) -> None:
    """Tells the user something, in one line."""
    print(f"[launch] {text}", file=sys.stderr, flush=True)
