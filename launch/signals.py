"""The signals that the launcher is sent, as something to wait for."""

import signal
import socket

from launch.exit_codes import AFTER_SIGNAL
from launch.processes import FORWARDED


class Stopped(Exception):
    """A signal came before the ranks ran, or between two attempts.

    Args:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.code = AFTER_SIGNAL[signal.Signals(number)]  # as ranks with nothing to save


class Signals:
    """Catches INT, TERM, USR1, USR2 and HUP from now on, and keeps them until somebody asks.

    HUP, from a terminal that is closed, counts as TERM, unless it is ignored, as under nohup.
    """

    def __init__(self):
        self._reader, writer = socket.socketpair()
        self._reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        for number in FORWARDED:
            signal.signal(number, _caught)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _caught)

    def fileno(self) -> int:
        """For selectors."""
        return self._reader.fileno()

    def received(self) -> list[int]:
        """The signals that came since the last call."""
        try:
            data = self._reader.recv(4096).replace(bytes([signal.SIGHUP]), bytes([signal.SIGTERM]))
        except BlockingIOError:
            return []
        return [number for number in data if number in FORWARDED]

    def check(self) -> None:
        """For times without ranks.

        Raises:
            Stopped: if a signal came.
        """
        for number in self.received():
            raise Stopped(number)


def ignore_late_signals() -> None:
    """The exit code is decided: a signal to a Python that is about to end would change it."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _caught(number, frame):
    pass
