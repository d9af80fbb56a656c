"""Ports that are free, and that no other launcher of this machine promises to its ranks."""

import contextlib
import itertools
import socket

from launch import exit_codes
from launch.errors import LaunchError

HIGHEST = 32767  # above begins what the kernel gives to outgoing connections


class Ports:
    """The ports that this launcher took, for as long as it lives.

    A port cannot be kept by listening on it, since it is for a rank to listen there. An abstract socket of the port's name
    keeps other launchers away from it, and vanishes with this process.
    """

    def __init__(self):
        self._kept: list[socket.socket] = []

    def take(self, port: int) -> bool:
        """Takes this port, if it is free."""
        name = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            name.bind(f"\0launch-port-{port}")
            if is_free(port):
                self._kept.append(name)
                return True
        name.close()
        return False

    def take_named(self, port: int) -> int:
        """Takes this port and no other.

        Raises:
            LaunchError: if it is in use.
        """
        if not self.take(port):
            raise LaunchError(
                f"Port {port} is in use. Name another one, or none on a single node: then the next free one is taken."
            )
        return port

    def take_next(self, first: int) -> int:
        """Takes the first port that is free, from this one on.

        Raises:
            LaunchError: if there is none.
        """
        for port in itertools.chain(range(first, HIGHEST), range(1024, first)):
            if self.take(port):
                return port
        raise LaunchError(f"No port from 1024 to {HIGHEST} is free.", code=exit_codes.FAILED)


def is_free(port: int) -> bool:
    """A server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
