"""Reserves free ports for ranks, so that no other launcher on this machine uses them."""

import contextlib
import itertools
import socket

from launch import exit_codes
from launch.errors import LaunchError

HIGHEST = 32767  # the kernel uses ports above for outgoing connections


class Ports:
    """The ports that this launcher has reserved, until it exits.

    The launcher cannot listen on a reserved port, because a rank will. Instead, it binds an abstract socket with the port's name:
    other launchers cannot bind the same name, and the socket vanishes with this process.
    """

    def __init__(self):
        self._kept: list[socket.socket] = []

    def take(self, port: int) -> bool:
        """Reserves a port if it is free. Returns whether it was."""
        name = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            name.bind(f"\0launch-port-{port}")
            if is_free(port):
                self._kept.append(name)
                return True
        name.close()
        return False

    def take_named(self, port: int) -> int:
        """Reserves a port that the user has chosen.

        Raises:
            LaunchError: if the port is in use.
        """
        if not self.take(port):
            raise LaunchError(
                f"Port {port} is in use. Choose another port; on a single node, leave the flag out to use the next free port."
            )
        return port

    def take_next(self, first: int) -> int:
        """Reserves the first free port, starting with this one.

        Raises:
            LaunchError: if no port is free.
        """
        for port in itertools.chain(range(first, HIGHEST), range(1024, first)):
            if self.take(port):
                return port
        raise LaunchError(f"No port from 1024 to {HIGHEST} is free.", code=exit_codes.FAILED)


def is_free(port: int) -> bool:
    """Returns whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
