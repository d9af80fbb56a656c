"""The part of every node but node 0: does as node 0 says, and tells it what happens here."""

import selectors
import signal
import sys

from launch import exit_codes
from launch.messages import Link
from launch.node import Node
from launch.signals import Signals
from launch.world import Layout


class Follower:
    """A node that follows node 0.

    Args:
        node: this one.
        link: to node 0's launcher.
        name: how to name node 0 when it is gone.
        signals: this launcher's.
    """

    def __init__(self, node: Node, link: Link, name: str, signals: Signals):
        self._node, self._link, self._name, self._signals = node, link, name, signals
        self._running = self._ran = False
        self._code: int | None = None

    def run(self) -> int:
        """Follows until node 0 says that the run is over, or is gone. Returns the exit code."""
        with selectors.DefaultSelector() as selector:
            for source, action in ((self._node, self._tell), (self._link, self._obey), (self._signals, self._pass_on)):
                selector.register(source, selectors.EVENT_READ, action)
            while self._code is None or self._running:
                for key, _ in selector.select():
                    key.data()
                if self._link.closed and self._link in selector.get_map():
                    selector.unregister(self._link)
                    self._end_alone()
                if self._node.lost and self._node in selector.get_map():
                    selector.unregister(self._node)
        return self._code

    def _tell(self):
        for event in self._node.events():
            if event["event"] in ("over", "lost"):
                self._running = False
            self._link.send(event)

    def _obey(self):
        for message in self._link.receive():
            if message["do"] == "start":
                self._running = self._ran = True
                self._node.make_log_dir(message["layout"]["run_id"])
                self._node.start(Layout(**message["layout"]), message["stall_timeout"], message["interval"])
            elif message["do"] == "leave":
                self._code = message["code"]
                if message["why"]:
                    print(message["why"], file=sys.stderr, flush=True)
            else:
                self._node.send(message)

    def _pass_on(self):
        if not self._ran:
            self._signals.check()
        for number in self._signals.received():
            self._link.send({"event": "signal", "number": number})

    def _end_alone(self):
        if self._code is None:
            self._code = exit_codes.FAILED
            print(f"{self._name}: its launcher is gone", file=sys.stderr, flush=True)
        if self._running:
            self._node.send({"do": "end", "number": signal.SIGTERM})
