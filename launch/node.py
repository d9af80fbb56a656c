"""This node: its ranks, through the guardian that owns them."""

import contextlib
import os
import signal
import socket
from typing import Any

from launch import processes
from launch.arguments import Plan, cpus
from launch.errors import LaunchError
from launch.guardian import start_guardian
from launch.world import Layout, environment_of


class Node:
    """The ranks of this node.

    Args:
        plan: what each of them executes, and what is shown and kept of their output.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self._link, self._guardian = start_guardian()
        self.host = socket.gethostname()
        self.lost = False
        self._log_dir = ""

    def fileno(self) -> int:
        """For selectors."""
        return self._link.fileno()

    def make_log_dir(self, run_id: str) -> None:
        """Makes the folder for the logs.

        Raises:
            LaunchError: if that is not possible.
        """
        self._log_dir = self._plan.log_dir or os.path.join("runs", "logs", run_id)
        try:
            os.makedirs(self._log_dir, exist_ok=True)
            if not os.access(self._log_dir, os.W_OK | os.X_OK):
                raise PermissionError(None, "Permission denied")
        except OSError as error:
            raise LaunchError(
                f"The folder for the logs, {self._log_dir}, cannot be used: {error.strerror}. Name another --log-dir."
            ) from None

    def start(self, layout: Layout, stall_timeout: float | None, interval: float) -> None:
        """Starts all ranks of this node."""
        ranks = []
        for local, rank in enumerate(layout.ranks(self._plan.node)):
            ranks.append(
                {
                    "rank": rank,
                    "command": self._plan.command,
                    "environment": environment_of(layout, rank, cpus=cpus(), already=os.environ),
                    "log": os.path.join(self._log_dir, f"rank-{rank}.log"),
                    "shown": self._plan.shown is None or local in self._plan.shown,
                }
            )
        self.send({"do": "start", "ranks": ranks, "stall_timeout": stall_timeout, "interval": interval})

    def send(self, message: dict[str, Any]) -> None:
        """Tells the guardian what to do."""
        self._link.send(message)

    def events(self) -> list[dict[str, Any]]:
        """Waits for what the guardian reports; if it was killed, ends what it leaves behind."""
        events = [{**event, "node": self._plan.node, "host": self.host} for event in self._link.receive()]
        if self._link.closed and not self.lost:
            self.lost = True
            self._end_orphans()
            events.append(
                {"event": "lost", "node": self._plan.node, "host": self.host, "why": "the process that owned its ranks was killed"}
            )
        return events

    def close(self) -> None:
        """Lets the guardian go, and waits until it has."""
        self._link.close()
        self._end_orphans() if self.lost else _wait(self._guardian)

    def _end_orphans(self):
        while True:
            processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def _wait(pid):
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
