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
from launch.limits import LONGEST_TEXT
from launch.network.callers import REASONS
from launch.network.connection import Connection
from launch.network.messages import AttemptEnded, EndRanks, Event, Leave, NodeLost, RankExited, RankStalled, SendSignal, Start
from launch.node.agent import log_dir, start_agent
from launch.world import ranks_of

CLOSE_WAIT = 20.0  # seconds until the agent must have ended: it needs 3 to kill ranks, and up to 10 for a blocked terminal
KILL_WAIT = 5.0  # seconds to wait for killed processes, which do not end while their disk hangs


class Node(ABC):
    """A node: accepts orders for its ranks, and reports their events.

    Args:
        number: the number of the node.
        host: the name of its host.
        connection: carries orders and events.
        ranks: the ranks that run on it.
    """

    def __init__(self, number: int, host: str, connection: Connection, ranks: range):
        self.number, self.host, self._ranks = number, host, ranks
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
        if not all(map(self._is_own, events)):
            events = []
            self._connection.closed, self._connection.problem = True, "unreadable"
        self.gone = self._connection.closed
        return [*events, NodeLost(self.lost)] if self.gone else events

    def _is_own(self, event: Event) -> bool:
        """Returns whether an event is about ranks of this node."""
        match event:
            case RankExited(record):
                return record.rank in self._ranks
            case RankStalled(rank):
                return rank in self._ranks
            case AttemptEnded(records):
                return [record.rank for record in records] == list(self._ranks)
        return True

    @property
    @abstractmethod
    def lost(self) -> str:
        """Why the node is lost when its connection closes."""

    @abstractmethod
    def leave(self, code: int, why: str) -> None:
        """Ends the run on the node.

        Args:
            code: the exit code of the run.
            why: one line for the user of the node; may be empty.
        """


class RemoteNode(Node):
    """A node with its own launcher, at the other end of a connection.

    Args:
        number, host, connection, ranks: as in `Node`.
        address: the address of the launcher.
    """

    def __init__(self, number: int, host: str, connection: Connection, ranks: range, address: str):
        super().__init__(number, host, connection, ranks)
        self._address = address

    @property
    def lost(self) -> str:
        problem = f"its launcher at {self._address} {REASONS['unreadable']}"
        return problem if self._connection.problem else "its launcher is gone"

    def leave(self, code: int, why: str) -> None:
        self._connection.send(Leave(code, why[:LONGEST_TEXT]))  # it may quote an argument that is as long


class LocalNode(Node):
    """The node of this launcher. Forks the agent, so create it before any thread.

    Args:
        config: the configuration of this launcher.
        clock: returns the time in seconds.
    """

    def __init__(self, config: LaunchConfig, clock: Callable[[], float] = time.monotonic):
        # A shell that has become this process may have left children: `tensorboard & exec python ...`.
        self._others = processes.descendants(os.getpid())
        connection, self._keeper = start_agent(config)
        super().__init__(config.node, socket.gethostname(), connection, ranks_of(config.node, config.per_node))
        self._config, self._clock = config, clock

    @property
    def lost(self) -> str:
        return "the process that owned its ranks was killed"

    def start(self, order: Start) -> None:
        """Starts all ranks of the node.

        Raises:
            LaunchError: if the order is for another run, or the log directory cannot be used.
        """
        world = order.world
        if not world.is_complete or (world.nodes, world.per_node) != (self._config.nodes, self._config.per_node):
            raise LaunchError(f"The launcher at {self._config.rendezvous[0]} sent an order that no launcher of this run sends.")
        self.make_log_dir(world.run_id)
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
