"""Writing beside training: one save at a time, whose failure training hears of at its next batch."""

import atexit
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from callbacks.checkpoint_directory import DirectoryLost
from callbacks.errors import CheckpointWriteError

_WORTH_A_WARNING = 0.1  # seconds


class Writer:
    """Runs the writing of checkpoints in a thread, or at once.

    The thread is one of an executor, which Python joins before it exits: a save in flight is finished also when training
    ends with an exception. If that save fails, nobody is left to raise it to, and it is said on standard error.

    Args:
        background: False writes at once, and `submit` returns when the file is there.

    Attributes:
        background: the same.
        slowest: seconds that the longest write has taken.
    """

    def __init__(self, background: bool):
        self.background = background
        self._executor: ThreadPoolExecutor | None = None
        self._in_flight: Future | None = None
        self._path = ""
        self.slowest = 0.0

    def make_room(self, reason: str) -> None:
        """Waits for the save in flight, if there is one, and says that training stood still.

        Args:
            reason: what needs the room, for the warning.

        Raises:
            CheckpointWriteError: if the save in flight, or one before it, has failed.
        """
        if self._in_flight is None:
            return
        if not self._in_flight.done():
            began = time.monotonic()
            size, seconds = self._result()
            waited = time.monotonic() - began
            if waited > _WORTH_A_WARNING:
                warnings.warn(
                    f"{reason} waited {waited:.1f} s for {self._path} to be written: the disk takes {seconds:.1f} s for "
                    f"{size / 1e6:.3g} MB, {size / 1e6 / seconds:.3g} MB/s. Save less often.",
                    stacklevel=2,
                )
        self.raise_failure()

    def prepare(self, act: Callable[[], None]) -> Future:
        """Runs a function in the thread before the next save; where that fails, so will the save, and say why."""
        return self._thread().submit(act)

    def submit(self, path: str, write: Callable[[], int]) -> None:
        """Has a checkpoint written; there has to be room.

        Args:
            path: for messages.
            write: writes it and returns its size in bytes.

        Raises:
            CheckpointWriteError: if it is written at once and fails.
        """

        def timed():
            began = time.monotonic()
            size = write()
            seconds = time.monotonic() - began
            self.slowest = max(self.slowest, seconds)
            return size, seconds

        self._path = path
        if self.background:
            self._in_flight = self._thread().submit(timed)
            atexit.register(self._say_failure)
            return
        try:
            timed()
        except Exception as error:
            raise _failure(path, error) from error

    def raise_failure(self) -> None:
        """Raises what the save in flight has failed of, if it has; costs next to nothing otherwise.

        Raises:
            CheckpointWriteError: once for each failure.
        """
        if self._in_flight is not None and self._in_flight.done():
            self._result()

    def finish(self) -> None:
        """Waits for the save in flight.

        Raises:
            CheckpointWriteError: if it fails.
        """
        if self._in_flight is not None:
            self._result()

    def _thread(self) -> ThreadPoolExecutor:
        self._executor = self._executor or ThreadPoolExecutor(1, "checkpoint-writer")
        return self._executor

    def _result(self) -> tuple[int, float]:
        in_flight, self._in_flight = self._in_flight, None
        assert in_flight is not None
        atexit.unregister(self._say_failure)
        try:
            return in_flight.result()
        except Exception as error:
            raise _failure(self._path, error) from error

    def _say_failure(self):
        try:
            self.finish()
        except CheckpointWriteError as error:
            print(error, file=sys.stderr)


def _failure(path, error):
    cause = getattr(error, "strerror", None) or error
    earlier = "" if isinstance(error, DirectoryLost) else " The checkpoints before it are intact."
    return CheckpointWriteError(f"Could not write the checkpoint {path}: {cause}.{earlier}")
