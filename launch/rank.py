"""A rank that was started: its process, its output, its progress and how it ended."""

import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping

from launch import processes, world
from launch.messages import ExitRecord
from launch.output import Stream


class Rank:
    """Starts a rank.

    Args:
        number: the rank.
        command, environment: what it executes, and with what.
        stream: where its output goes.
        ignored: signals that it ignores until it has a handler.
        cores: those that it runs on; None: the launcher's.

    Raises:
        OSError: if the system has no room for another process.
    """

    def __init__(
        self,
        number: int,
        command: list[str],
        environment: Mapping[str, str],
        stream: Stream,
        ignored: Iterable[int],
        cores: Collection[int] | None = None,
    ):
        self.number = number
        self.stream = stream
        self.pending: set[int] = set()  # signals that it gets when it has a handler for them
        self.exit_code: int | None = None  # negative for a signal
        self._progress = os.memfd_create("progress")
        channel = {world.PROGRESS: f"/proc/{os.getpid()}/fd/{self._progress}"}
        self.pid = processes.spawn(command, {**environment, **channel}, stream.writer, ignored, cores)
        os.close(stream.writer)
        self.pidfd = processes.open_pidfd(self.pid)
        self.alive_at = time.monotonic()
        self._seen = self._signs_of_life()

    @property
    def batch(self) -> int | None:
        """The last batch that it reported."""
        return world.read_progress(self._progress)[0]

    @property
    def record(self) -> ExitRecord:
        """How it ended. A rank whose end nobody saw counts as killed."""
        code = -int(signal.SIGKILL) if self.exit_code is None else self.exit_code
        return ExitRecord(self.number, code, self.batch, self.stream.log.path, self.stream.log.lost)

    def moved(self) -> bool:
        """It reported a batch since the last call; or, as long as it never did, it wrote something."""
        before, self._seen = self._seen, self._signs_of_life()
        return before != self._seen

    def deliver_pending(self) -> None:
        """Sends the signals that were kept until the rank has a handler for them."""
        for number in [number for number in self.pending if processes.catches(self.pid, number)]:
            self.pending.remove(number)
            processes.send([self.pid], number)

    def close(self) -> None:
        """Closes its output and its progress."""
        self.stream.close()
        os.close(self._progress)

    def _signs_of_life(self):
        batch, raw = world.read_progress(self._progress)
        return self.stream.bytes if batch is None else raw
