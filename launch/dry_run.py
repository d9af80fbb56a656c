"""What `--dry-run` prints: rank, host, devices, command and environment."""

import os
import shlex
import socket

from launch.config import LaunchConfig
from launch.devices import gpus
from launch.numa import as_text
from launch.world import WorldSpec, environment_of


def render(config: LaunchConfig, world: WorldSpec) -> str:
    """The table. Of the other nodes it knows only the numbers: devices are this node's, addresses node 0's."""
    environments = [
        environment_of(world, rank, threads=config.threads(rank % world.per_node), already=os.environ)
        for rank in range(world.world_size)
    ]
    same = set.intersection(*(set(environment.items()) for environment in environments))
    rows = [("rank", "host", "devices", "command", "environment")]
    for rank, environment in enumerate(environments):
        node, local = divmod(rank, world.per_node)
        host = socket.gethostname() if node == config.node else f"(node {node})"
        own = _variables(dict(sorted(environment.items() - same)))
        rows.append((str(rank), host, _devices(config, local), shlex.join(config.command), own))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    everywhere = _variables(dict(sorted(same)))
    return "\n".join(
        [*lines, "", f"on every rank: {everywhere}", "Where Horovod's rendezvous server listens is known when it runs."]
    )


def _devices(config, local):
    found, per_node = gpus(os.environ), config.per_node
    cores = f", cores {as_text(config.cores[local])}" if config.cores else ""
    if not found:
        threads = config.threads(local)
        return f"cpu, {threads} thread{'' if threads == 1 else 's'}{cores}"
    return "gpu " + (",".join(found) if per_node == 1 else found[local % len(found)]) + cores


def _variables(environment):
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
