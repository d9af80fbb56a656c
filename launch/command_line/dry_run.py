"""The table that `--dry-run` prints: rank, host, devices, command and environment."""

import os
import shlex
import socket

from launch.command_line.config import LaunchConfig
from launch.command_line.devices import gpus
from launch.command_line.numa import as_text
from launch.world import WorldSpec, environment_of


def render(config: LaunchConfig, world: WorldSpec) -> str:
    """Returns the table. Other nodes have only their numbers in it: devices are those of this node, addresses those of node 0."""
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
        [*lines, "", f"on every rank: {everywhere}", "The address of Horovod's rendezvous server is known when the run starts."]
    )


def _devices(config, local):
    found = gpus(os.environ)
    cores = f", cores {as_text(config.cores[local])}" if config.cores else ""
    if not found:
        threads = config.threads(local)
        return f"cpu, {threads} thread{'' if threads == 1 else 's'}{cores}"
    return "gpu " + (",".join(found) if config.per_node == 1 else found[local % len(found)]) + cores


def _variables(environment):
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
