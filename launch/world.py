"""The environment of a rank. The launcher writes it and recipes read it, both only here.

| reader | variables |
|---|---|
| code written for torchrun | `RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE MASTER_ADDR MASTER_PORT` |
| Horovod | `HOROVOD_RANK HOROVOD_SIZE HOROVOD_LOCAL_RANK ...`, and the address of its rendezvous server |
| TensorFlow's own multi-worker strategies | `TF_CONFIG` |
| this project | `LAUNCH_RUN_ID LAUNCH_RESTARTS LAUNCH_PROGRESS` |

Needs only the standard library, and does nothing at import.
"""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from launch.limits import Name, Number, Port, RunId, Size

PROGRESS = "LAUNCH_PROGRESS"
PROGRESS_BYTES = 48
SECRET = "LAUNCH_SECRET"  # shared by the launchers of a run; ranks do not get it
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")

# Field of World -> the variables that may contain it; the first one that is set is read (horovodrun sets only the second).
READ_FROM = {
    "rank": ("RANK", "HOROVOD_RANK"),
    "local_rank": ("LOCAL_RANK", "HOROVOD_LOCAL_RANK"),
    "world_size": ("WORLD_SIZE", "HOROVOD_SIZE"),
    "local_world_size": ("LOCAL_WORLD_SIZE", "HOROVOD_LOCAL_SIZE"),
    "node_rank": ("GROUP_RANK", "HOROVOD_CROSS_RANK"),
    "restarts": ("LAUNCH_RESTARTS",),
}


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks of its run. The defaults describe a process without a launcher.

    Args:
        rank: `[0, world_size)`; rank 0 is the chief.
        local_rank: the rank within its node, `[0, local_world_size)`.
        world_size: the number of ranks in the run.
        local_world_size: the number of ranks on this node.
        node_rank: the number of this node.
        restarts: how often the launcher has restarted all ranks.
        run_id: the name of the run, the same on every rank and in every attempt; empty without a launcher.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    restarts: int = 0
    run_id: str = ""

    def device(self, visible: int) -> int:
        """Returns the index of this rank's device among the visible ones, also if Slurm shows each rank only its own device."""
        return self.local_rank % visible


def read_world(environment: Mapping[str, str] | None = None) -> World:
    """Reads the environment that the launcher, torchrun or horovodrun has set.

    Args:
        environment: the variables; by default those of this process.

    Raises:
        ValueError: if a variable is not a number, or if the numbers contradict each other.
    """
    environment = os.environ if environment is None else environment
    found = {}
    for field, names in READ_FROM.items():
        name = next((name for name in names if name in environment), None)
        if name is None:
            continue
        if not environment[name].isdecimal():
            raise ValueError(f"{name} must be a number from 0. Received: {environment[name]!r}")
        found[field] = int(environment[name])
    world = World(**found, run_id=environment.get("LAUNCH_RUN_ID", ""))
    if not (world.rank < world.world_size and world.local_rank < world.local_world_size <= world.world_size):
        raise ValueError(f"A rank must be below the world size, and a local rank below the local world size. Received: {world}")
    return world


def ranks_of(node: int, per_node: int) -> range:
    """Returns the ranks of a node, in the order of their local ranks."""
    return range(node * per_node, (node + 1) * per_node)


@dataclass(frozen=True)
class WorldSpec:
    """A run as every node knows it. The environment of each rank follows from it.

    Args:
        nodes: the number of nodes.
        per_node: the number of ranks on each node.
        run_id: the name of the run.
        master_addr, master_port: where rank 0 may listen; no other process listens there.
        addresses: the address of each node, `[nodes]`.
        worker_ports: the ports of the ranks in `TF_CONFIG`, `[nodes][per_node]`.
        interfaces: the network interface of each node, over which the others reach it, `[nodes]`.
        horovod: address and port of Horovod's rendezvous server; None if Horovod is not installed.
        restarts: how often all ranks have been restarted.
    """

    nodes: Size
    per_node: Size
    run_id: RunId
    master_addr: Name
    master_port: Port
    addresses: tuple[Name, ...]
    worker_ports: tuple[tuple[Port, ...], ...]
    interfaces: tuple[Name, ...]
    horovod: tuple[Name, Port] | None = None
    restarts: Number = 0

    @property
    def world_size(self) -> int:
        return self.nodes * self.per_node

    @property
    def is_complete(self) -> bool:
        """Whether each node and each rank has its addresses."""
        per_node = [len(self.addresses), len(self.worker_ports), len(self.interfaces)]
        return per_node == [self.nodes] * 3 and all(len(ports) == self.per_node for ports in self.worker_ports)

    def ranks(self, node: int) -> range:
        """Returns the ranks of a node, in the order of their local ranks."""
        return ranks_of(node, self.per_node)


def environment_of(world: WorldSpec, rank: int, *, threads: int, already: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that the launcher adds for one rank.

    Args:
        world: the run.
        rank: the rank.
        threads: the number of threads for the libraries of the rank, if several ranks share the node.
        already: the environment of the launcher; variables that the user has set there keep their values.
    """
    node, local = divmod(rank, world.per_node)
    numbers = {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": world.world_size,
        "LOCAL_WORLD_SIZE": world.per_node,
        "GROUP_RANK": node,
        "GROUP_WORLD_SIZE": world.nodes,
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": world.master_port,
        "HOROVOD_RANK": rank,
        "HOROVOD_SIZE": world.world_size,
        "HOROVOD_LOCAL_RANK": local,
        "HOROVOD_LOCAL_SIZE": world.per_node,
        "HOROVOD_CROSS_RANK": node,
        "HOROVOD_CROSS_SIZE": world.nodes,
        "HOROVOD_HOSTNAME": horovod_host(node),
        "LAUNCH_RESTARTS": world.restarts,
    }
    if world.horovod:
        numbers["HOROVOD_GLOO_RENDEZVOUS_ADDR"], numbers["HOROVOD_GLOO_RENDEZVOUS_PORT"] = world.horovod
    found = {name: str(value) for name, value in numbers.items()}
    found["TF_CONFIG"] = _tf_config(world, rank)
    found["LAUNCH_RUN_ID"] = world.run_id
    defaults = {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": world.interfaces[node],
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "300",  # ranks meet after their imports, which may be slow on some ranks
        "PYTHONFAULTHANDLER": "1",  # a rank that stalls or crashes prints its Python stacks
        **(dict.fromkeys(THREADS, str(threads)) if world.per_node > 1 else {}),
    }
    return found | {name: value for name, value in defaults.items() if name not in already}


def horovod_host(node: int) -> str:
    """Returns the name by which Horovod identifies a node. It is not a host name, because hosts may share one."""
    return f"node{node}"


def _tf_config(world, rank):
    workers = [f"{address}:{port}" for address, ports in zip(world.addresses, world.worker_ports, strict=True) for port in ports]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})


def report_progress(batch: int) -> None:
    """Reports the progress of this rank to the launcher. Does nothing without a launcher.

    Call this function after each global batch, and also while the batch does not advance, as in validation: every call counts as
    progress for `--stall-timeout`. A call takes one or two microseconds and never blocks.

    Args:
        batch: global batches trained on since training began, over all restarts.
    """
    path = os.environ.get(PROGRESS)
    if path:
        channel = _progress_channel(path)
        if channel:
            channel.write(batch)


class _ProgressChannel:
    def __init__(self, descriptor):
        self._descriptor, self._calls = descriptor, 0

    def write(self, batch):
        self._calls += 1
        os.pwrite(self._descriptor, f"{batch:<20d} {self._calls:<20d}\n".encode(), 0)


@functools.lru_cache(maxsize=1)
def _progress_channel(path):
    try:
        return _ProgressChannel(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError:  # the launcher is gone or in another container; training continues without it
        return None


def read_progress(descriptor: int) -> tuple[int | None, bytes]:
    """Returns the last batch that a rank reported, or None, and bytes that change with every report."""
    raw = os.pread(descriptor, PROGRESS_BYTES, 0)
    return (int(raw.split()[0]) if raw.endswith(b"\n") else None), raw
