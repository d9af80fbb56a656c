"""The signals that the launcher is sent, as something to wait for."""

import signal
import socket

from launch.processes import FORWARDED


class Stopped(Exception):
    """A signal came before the ranks ran, or between two lives of them.

    Args:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.code = (
            130 if number == signal.SIGINT else 143 if number == signal.SIGTERM else 75
        )  # nothing to save: stopped, as asked


class Signals:
    """Catches INT, TERM, USR1 and USR2 from now on; they raise `Stopped` as long as `waiting` is set."""

    def __init__(self):
        self.waiting = True
        self._reader, writer = socket.socketpair()
        self._reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        for number in FORWARDED:
            signal.signal(number, self._caught)

    def fileno(self) -> int:
        """For selectors."""
        return self._reader.fileno()

    def received(self) -> list[int]:
        """The signals that came since the last call."""
        try:
            return [number for number in self._reader.recv(4096) if number in FORWARDED]
        except BlockingIOError:
            return []

    def _caught(self, number, frame):
        if self.waiting:
            raise Stopped(number)
