"""The nodes of a run as the coordinator sees them: its own, and those that other launchers run."""

import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from launch import processes
from launch.agent import log_dir, start_agent
from launch.config import LaunchConfig
from launch.connection import Connection
from launch.errors import LaunchError
from launch.messages import EndRanks, Event, Leave, NodeLost, SendSignal, Start

CLOSE_WAIT = 20.0  # seconds in which the agent has to end: it takes 3 to kill ranks, and up to 10 for a terminal that stands still
KILL_WAIT = 5.0  # seconds in which what is killed has to be gone, unless its disk hangs


class Node(ABC):
    """A node: takes orders for its ranks, and reports what becomes of them.

    Args:
        number: of the node.
        host: the name of its host.
        connection: on which its events arrive.
    """

    lost: str  # why the node can run nothing any more when its connection is closed

    def __init__(self, number: int, host: str, connection: Connection):
        self.number, self.host = number, host
        self.gone = False  # it can run nothing any more
        self._connection = connection

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def start(self, order: Start) -> None:
        """Starts all ranks of the node."""
        self._connection.send(order)

    def send(self, order: SendSignal | EndRanks) -> None:
        """Has a signal sent to the ranks of the node."""
        self._connection.send(order)

    def events(self) -> list[Event]:
        """Waits for what the node reports; for one that is gone, `NodeLost` comes last."""
        events: list[Event] = [message for message in self._connection.receive() if isinstance(message, Event)]
        self.gone = self._connection.closed
        return [*events, NodeLost(self.lost)] if self.gone else events

    @abstractmethod
    def leave(self, code: int, why: str) -> None:
        """Lets the node go: the run is over.

        Args:
            code: the run's exit code.
            why: a line for the node's user; empty if there is nothing to say.
        """


class RemoteNode(Node):
    """A node whose launcher is at the other end of a connection."""

    lost = "its launcher is gone"

    def leave(self, code: int, why: str) -> None:
        self._connection.send(Leave(code, why))


class LocalNode(Node):
    """The node of this launcher. Forks its agent, so it is made before anything that has threads.

    Args:
        config: this launcher's.
        clock: seconds.
    """

    lost = "the process that owned its ranks was killed"

    def __init__(self, config: LaunchConfig, clock: Callable[[], float] = time.monotonic):
        self._others = processes.descendants(os.getpid())  # of a shell that became this process: `tensorboard & exec python ...`
        connection, self._keeper = start_agent(config)
        super().__init__(config.node, socket.gethostname(), connection)
        self._config, self._clock = config, clock

    def start(self, order: Start) -> None:
        """Starts all ranks of the node.

        Raises:
            LaunchError: if the folder for the logs cannot be used.
        """
        self.make_log_dir(order.world.run_id)
        super().start(order)

    def send(self, order: SendSignal | EndRanks) -> None:
        self._wake()
        super().send(order)

    def leave(self, code: int, why: str) -> None:
        self.close()

    def make_log_dir(self, run_id: str) -> None:
        """Makes the folder for the logs.

        Raises:
            LaunchError: if that is not possible.
        """
        folder = log_dir(self._config, run_id)
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "Permission denied")
        except OSError as error:
            raise LaunchError(
                f"The folder for the logs, {folder}, cannot be used: {error.strerror}. Name another --log-dir."
            ) from None

    def close(self) -> None:
        """Lets the agent end what it still runs. Kills it, and everything below it, if that takes too long."""
        self._connection.close()
        self._wake()
        deadline = self._clock() + (0 if self.gone else CLOSE_WAIT)
        while processes.descendants(os.getpid(), self._others) and self._clock() < deadline:
            processes.reap()
            time.sleep(processes.SWEEP)
        processes.end_descendants(KILL_WAIT, self._clock, self._others)

    def _wake(self):
        """An agent that was stopped goes on."""
        processes.send_to_groups([self._keeper], signal.SIGCONT)  # the keeper's group, which the agent is in
