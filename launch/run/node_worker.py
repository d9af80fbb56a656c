"""The node worker on every node except node 0: executes the orders of the coordinator, and reports events to it."""

import selectors
import signal
import time
from collections.abc import Callable

from launch import console, exit_codes
from launch.network.callers import REASONS
from launch.network.connection import Connection
from launch.network.messages import AttemptEnded, EndRanks, Leave, NodeLost, SendSignal, SignalReceived, Start
from launch.run.coordinator import UNREACHABLE
from launch.run.nodes import LocalNode
from launch.signals import Signals


class NodeWorker:
    """Passes orders from the coordinator to this node, and events of this node to the coordinator.

    Args:
        node: this node.
        coordinator: the connection to node 0's launcher.
        name: the name of node 0 in the message that says that it is gone.
        signals: the signals that this launcher receives.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        node: LocalNode,
        coordinator: Connection,
        name: str,
        signals: Signals,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._node, self._coordinator, self._name, self._signals, self._clock = node, coordinator, name, signals, clock
        self._running = self._ran = False
        self._code: int | None = None

    def run(self) -> int:
        """Works until node 0 ends the run or is gone. Returns the exit code."""
        with selectors.DefaultSelector() as selector:
            actions = ((self._node, self._report), (self._coordinator, self._handle_orders), (self._signals, self._forward_signals))
            for source, action in actions:
                selector.register(source, selectors.EVENT_READ, action)
            deadline = float("inf")
            while (self._code is None or self._running) and self._clock() < deadline:
                for key, _ in selector.select(None if self._code is None else max(0, deadline - self._clock())):
                    key.data()
                if self._coordinator.closed and self._coordinator in selector.get_map():
                    selector.unregister(self._coordinator)
                    self._on_coordinator_lost()
                if self._node.gone and self._node in selector.get_map():
                    selector.unregister(self._node)
                if self._code is not None:
                    deadline = min(deadline, self._clock() + UNREACHABLE)
        return exit_codes.FAILED if self._code is None else self._code

    def _report(self):
        for event in self._node.events():
            if isinstance(event, AttemptEnded | NodeLost):
                self._running = False
            self._coordinator.send(event)

    def _handle_orders(self):
        for order in self._coordinator.receive():
            match order:
                case Start():
                    self._running = self._ran = True
                    self._node.start(order)
                case SendSignal() | EndRanks():
                    self._node.send(order)
                case Leave(code, why):
                    self._code = code
                    if why:
                        console.show(why)

    def _forward_signals(self):
        if not self._ran:
            self._signals.check()
        for number in self._signals.received():
            self._coordinator.send(SignalReceived(signal.Signals(number)))

    def _on_coordinator_lost(self):
        unexpected, self._code = self._code is None, exit_codes.FAILED if self._code is None else self._code
        if self._running:
            self._node.send(EndRanks(signal.SIGTERM))
        if unexpected:
            why = REASONS["unreadable"] if self._coordinator.problem else "is gone"
            console.show(f"{self._name}: its launcher {why}")
