"""The nodes of a run as the coordinator sees them: the local node, and remote nodes with their own launchers."""

import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from launch import processes
from launch.command_line.config import LaunchConfig
from launch.errors import LaunchError
from launch.network.connection import Connection
from launch.network.messages import EndRanks, Event, Leave, NodeLost, SendSignal, Start
from launch.node.agent import log_dir, start_agent

CLOSE_WAIT = 20.0  # seconds until the agent must have ended: it needs 3 to kill ranks, and up to 10 for a blocked terminal
KILL_WAIT = 5.0  # seconds to wait for killed processes, which do not end while their disk hangs


class Node(ABC):
    """A node: accepts orders for its ranks, and reports their events.

    Args:
        number: the number of the node.
        host: the name of its host.
        connection: carries orders and events.
    """

    lost: str  # why the node is lost when its connection closes

    def __init__(self, number: int, host: str, connection: Connection):
        self.number, self.host = number, host
        self.gone = False  # the node can no longer run ranks
        self._connection = connection

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def start(self, order: Start) -> None:
        """Starts all ranks of the node."""
        self._connection.send(order)

    def send(self, order: SendSignal | EndRanks) -> None:
        """Sends a signal to the ranks of the node."""
        self._connection.send(order)

    def events(self) -> list[Event]:
        """Waits for events of the node. If the node is gone, `NodeLost` is the last event."""
        events: list[Event] = [message for message in self._connection.receive() if isinstance(message, Event)]
        self.gone = self._connection.closed
        return [*events, NodeLost(self.lost)] if self.gone else events

    @abstractmethod
    def leave(self, code: int, why: str) -> None:
        """Ends the run on the node.

        Args:
            code: the exit code of the run.
            why: one line for the user of the node; may be empty.
        """


class RemoteNode(Node):
    """A node with its own launcher, at the other end of a connection."""

    lost = "its launcher is gone"

    def leave(self, code: int, why: str) -> None:
        self._connection.send(Leave(code, why))


class LocalNode(Node):
    """The node of this launcher. Forks the agent, so create it before any thread.

    Args:
        config: the configuration of this launcher.
        clock: returns the time in seconds.
    """

    lost = "the process that owned its ranks was killed"

    def __init__(self, config: LaunchConfig, clock: Callable[[], float] = time.monotonic):
        # A shell that has become this process may have left children: `tensorboard & exec python ...`.
        self._others = processes.descendants(os.getpid())
        connection, self._keeper = start_agent(config)
        super().__init__(config.node, socket.gethostname(), connection)
        self._config, self._clock = config, clock

    def start(self, order: Start) -> None:
        """Starts all ranks of the node.

        Raises:
            LaunchError: if the log directory cannot be used.
        """
        self.make_log_dir(order.world.run_id)
        super().start(order)

    def send(self, order: SendSignal | EndRanks) -> None:
        self._wake()
        super().send(order)

    def leave(self, code: int, why: str) -> None:
        self.close()

    def make_log_dir(self, run_id: str) -> None:
        """Creates the log directory.

        Raises:
            LaunchError: if it cannot be created or written to.
        """
        folder = log_dir(self._config, run_id)
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "Permission denied")
        except OSError as error:
            raise LaunchError(f"The log directory {folder} cannot be used: {error.strerror}. Choose another --log-dir.") from None

    def close(self) -> None:
        """Waits until the agent has ended all processes. Kills the agent and its descendants if that takes too long."""
        self._connection.close()
        self._wake()
        deadline = self._clock() + (0 if self.gone else CLOSE_WAIT)
        while processes.descendants(os.getpid(), self._others) and self._clock() < deadline:
            processes.reap()
            time.sleep(processes.SWEEP)
        processes.end_descendants(KILL_WAIT, self._clock, self._others)

    def _wake(self):
        """Continues an agent that SIGSTOP has stopped."""
        processes.send_to_groups([self._keeper], signal.SIGCONT)  # the agent is in the keeper's group
