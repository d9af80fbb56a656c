"""A rank that was started: its process, output, progress and end."""

import os
import signal
from collections.abc import Collection, Iterable, Mapping

from launch import processes, world
from launch.messages import ExitRecord
from launch.output import Stream


class Rank:
    """Starts a rank.

    Args:
        number: the rank.
        command, environment: the command, and its environment.
        stream: receives the output.
        ignored: signals that the rank ignores until it installs a handler.
        cores: the cores that the rank runs on; None: the cores of the launcher.

    Raises:
        OSError: if the process cannot be started.
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
        self.pending: set[int] = set()  # signals to deliver when the rank has a handler for them
        self.exit_code: int | None = None  # negative for a signal
        self._progress = os.memfd_create("progress")
        channel = {world.PROGRESS: f"/proc/{os.getpid()}/fd/{self._progress}"}
        self.pid = processes.spawn(command, {**environment, **channel}, stream.writer, ignored, cores)
        os.close(stream.writer)
        self.pidfd = processes.open_pidfd(self.pid)
        self._seen = self._signs_of_life()

    @property
    def batch(self) -> int | None:
        """The last batch that the rank has reported."""
        return world.read_progress(self._progress)[0]

    @property
    def record(self) -> ExitRecord:
        """How the rank ended. A rank whose exit was not observed counts as killed."""
        code = -int(signal.SIGKILL) if self.exit_code is None else self.exit_code
        return ExitRecord(self.number, code, self.batch, self.stream.log.path, self.stream.log.lost)

    def moved(self) -> bool:
        """Returns whether the rank reported progress since the last call, or, if it has never reported any, wrote output."""
        before, self._seen = self._seen, self._signs_of_life()
        return before != self._seen

    def deliver_pending(self) -> None:
        """Delivers pending signals for which the rank has a handler now."""
        for number in [number for number in self.pending if processes.catches(self.pid, number)]:
            self.pending.remove(number)
            processes.send([self.pid], number)

    def close(self) -> None:
        """Closes the output and the progress file."""
        self.stream.close()
        os.close(self._progress)

    def _signs_of_life(self):
        batch, raw = world.read_progress(self._progress)
        return self.stream.bytes if batch is None else raw
