"""Free ports, below those that the kernel uses for outgoing connections and those of Slurm jobs (slurm/job.sh)."""

import contextlib
import secrets
import socket

from launch.network.ports import is_free

_reserved: list[socket.socket] = []


def free_ports(count):
    """Returns ports that are free now, and that no process of the tests gets while this one runs.

    An abstract socket with the port's name reserves it, since the process that will listen on it may start seconds later.
    """
    found: list[int] = []
    while len(found) < count:
        port, name = 10_000 + secrets.randbelow(10_000), socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            name.bind(f"\0test-port-{port}")
            if is_free(port):
                _reserved.append(name)
                found.append(port)
    return found
