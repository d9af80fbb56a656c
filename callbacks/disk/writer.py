"""Writes checkpoints in the background, one at a time; a failure is raised at the next batch."""

import atexit
import os
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from callbacks.errors import CheckpointWriteError, DirectoryLost

_WORTH_A_WARNING = 0.1  # seconds
_writes: dict[Future, str] = {}  # the saves in flight of all writers of this process, with the path of each
os.register_at_fork(after_in_child=_writes.clear)  # a forked process has no threads


class Writer:
    """Writes checkpoints in a thread, or synchronously.

    Python joins the executor's thread before it exits, so a save in flight is finished even if training ends with an
    exception. If that save fails, the error is printed to standard error.

    Args:
        background: False writes synchronously: `submit` returns when the file exists.

    Attributes:
        background: as given.
        slowest: duration of the longest write, in seconds.
    """

    def __init__(self, background: bool):
        self.background = background
        self._executor: ThreadPoolExecutor | None = None
        self._in_flight: Future | None = None
        self._path = ""
        self.slowest = 0.0

    def make_room(self, reason: str) -> None:
        """Waits for the save in flight, if any, and warns that training waited.

        Args:
            reason: the subject of the warning: what had to wait.

        Raises:
            CheckpointWriteError: if the save in flight or an earlier one has failed.
        """
        if self._in_flight is None:
            return
        if self.is_writing:
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

    @property
    def is_writing(self) -> bool:
        """Whether a save is in flight."""
        return self._in_flight is not None and not self._in_flight.done()

    def prepare(self, act: Callable[[], None]) -> Future:
        """Runs a function in the thread before the next save, and returns its future."""
        return self._start(act)

    def submit(self, path: str, write: Callable[[], int]) -> None:
        """Starts the write of a checkpoint. No other save may be in flight.

        Args:
            path: the checkpoint's path, for messages.
            write: writes the checkpoint and returns its size in bytes.

        Raises:
            CheckpointWriteError: if the write is synchronous and fails.
        """

        def timed():
            began = time.monotonic()
            size = write()
            seconds = time.monotonic() - began
            self.slowest = max(self.slowest, seconds)
            return size, seconds

        self._path = path
        if self.background:
            self._in_flight = self._start(timed)
            _writes[self._in_flight] = path
            atexit.register(self._say_failure)
            self._in_flight.add_done_callback(self._end_write)
            return
        try:
            timed()
        except Exception as error:
            raise _failure(path, error) from error

    def raise_failure(self) -> None:
        """Raises the error of a save in flight that has failed; costs next to nothing otherwise.

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

    def _start(self, act: Callable[[], Any]) -> Future:
        """Starts a function in the thread. If Python starts no more threads, since its main thread has ended, it runs at once."""
        self._executor = self._executor or ThreadPoolExecutor(1, "checkpoint-writer")
        try:
            return self._executor.submit(act)
        except RuntimeError:
            done: Future = Future()
            try:
                done.set_result(act())
            except Exception as error:
                done.set_exception(error)
            return done

    def _result(self) -> tuple[int, float]:
        in_flight, self._in_flight = self._in_flight, None
        assert in_flight is not None
        atexit.unregister(self._say_failure)
        try:
            return in_flight.result()
        except Exception as error:
            raise _failure(self._path, error) from error

    def _end_write(self, write):
        del _writes[write]
        if write.exception() is None:
            atexit.unregister(self._say_failure)  # else this object and its thread would stay until the process exits

    def _say_failure(self):
        if self.is_writing:  # only in a forked process: the threads of this one have ended
            return
        try:
            self.finish()
        except CheckpointWriteError as error:
            print(error, file=sys.stderr)


def finish_writes(matches: Callable[[str], bool]) -> None:
    """Waits for saves of this process by any writer, since a failed `fit` leaves its last save in flight.

    Args:
        matches: receives the path of a save and returns whether to wait for it.
    """
    wait([write for write, path in list(_writes.items()) if matches(path)])


def _failure(path, error):
    cause = getattr(error, "strerror", None) or error
    earlier = "" if isinstance(error, DirectoryLost) else " The checkpoints before it are intact."
    return CheckpointWriteError(f"Could not write the checkpoint {path}: {cause}.{earlier}")
