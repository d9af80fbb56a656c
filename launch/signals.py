"""The signals that the launcher receives, as a file descriptor to wait for."""

import signal
import socket

from launch.exit_codes import AFTER_SIGNAL
from launch.processes import FORWARDED


class Stopped(Exception):
    """A signal arrived before the ranks started, or between two attempts.

    Args:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.code = AFTER_SIGNAL[signal.Signals(number)]  # the exit code of ranks with nothing to save


class Signals:
    """Catches INT, TERM, USR1, USR2 and HUP, and stores them until `received` is called.

    HUP, which a closed terminal sends, counts as TERM. Under nohup, HUP stays ignored.
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
        """Returns the signals received since the last call."""
        try:
            data = self._reader.recv(4096).replace(bytes([signal.SIGHUP]), bytes([signal.SIGTERM]))
        except BlockingIOError:
            return []
        return [number for number in data if number in FORWARDED]

    def check(self) -> None:
        """Checks for signals while no ranks run.

        Raises:
            Stopped: if a signal was received.
        """
        for number in self.received():
            raise Stopped(number)


def ignore_late_signals() -> None:
    """Ignores signals while Python exits, because they would change the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _caught(number, frame):
    pass
