"""Free ports, below those that the kernel uses for outgoing connections and those of Slurm jobs (slurm/job.sh)."""

import secrets

from launch.network.ports import Ports


def free_ports(count):
    """Returns different ports that are free now."""
    ports = Ports()
    return [ports.take_next(10_000 + secrets.randbelow(10_000)) for _ in range(count)]
