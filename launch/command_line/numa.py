"""`--numa-binding`: selects the cores that each rank runs on, near its GPU. The modes are torchrun's.

A core accesses the memory of its own NUMA node faster than the memory of other nodes, and a GPU is attached to one node. Binding a
process to the cores of a node also binds its memory, because Linux allocates a page on the node of the core that first writes to
it. Without GPUs, the ranks are spread evenly over the nodes. Not measured on a GPU.

Sources: the modes, https://docs.pytorch.org/docs/stable/elastic/numa.html; the files in /sys,
https://docs.kernel.org/admin-guide/cputopology.html.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from launch.errors import LaunchError

MODES = ("node", "socket", "exclusive", "core-complex")
ROOT = Path("/")  # the parent of /sys, /proc and /dev; tests set another one


def bind(mode: str, ranks: int, gpus: Sequence[str], allowed: frozenset[int]) -> tuple[frozenset[int], ...]:
    """Returns the cores of each local rank.

    Args:
        mode: `node`: all cores of the NUMA node of the rank's GPU; `socket`: all cores of the socket of that node; `exclusive`: a
            share of the cores of that node, which no other rank gets; `core-complex`: cores of that node that share their
            last-level cache, a different one for each rank if there are enough.
        ranks: the number of ranks on this machine.
        gpus: the visible GPUs, by number or UUID. Local rank i uses GPU i modulo their number.
        allowed: the cores that this process may use.

    Raises:
        LaunchError: if /sys or /proc does not show where GPUs or cores are, or a node has too few cores.
    """
    nodes = _nodes(allowed)
    homes = _homes(ranks, gpus, sorted(nodes))
    for rank, home in enumerate(homes):
        if home not in nodes:
            raise LaunchError(
                f"--numa-binding: the GPU of local rank {rank} is on NUMA node {home}, and this process may use none of its cores."
            )
    return tuple(_cores(mode, nodes, home, homes[:rank].count(home), homes.count(home)) for rank, home in enumerate(homes))


def as_text(cores: frozenset[int]) -> str:
    """Returns cores in the notation of Linux.

    >>> as_text(frozenset({0, 1, 2, 5, 7}))
    '0-2,5,7'
    """
    starts = [core for core in sorted(cores) if core - 1 not in cores]
    ends = [core for core in sorted(cores) if core + 1 not in cores]
    return ",".join(f"{start}-{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True))


def _cores(mode, nodes, home, place, ranks):
    """Returns the cores of the rank at `place` of the `ranks` whose NUMA node is `home`."""
    if mode == "node":
        return nodes[home]
    if mode == "socket":
        return frozenset().union(*(cores for cores in nodes.values() if _socket(cores) == _socket(nodes[home])))
    if mode == "exclusive":
        return _share(_groups(nodes[home], _siblings), place, ranks, home)
    complexes = sorted(_groups(nodes[home], _last_cache), key=len, reverse=True)
    return complexes[place % len(complexes)]


def _nodes(allowed):
    """Returns the allowed cores of each NUMA node that has any."""
    found = {}
    for path in (ROOT / "sys/devices/system/node").glob("node[0-9]*"):
        cores = _list(path / "cpulist") & allowed
        if cores:
            found[int(path.name.removeprefix("node"))] = cores
    if not found:
        raise LaunchError("--numa-binding needs /sys/devices/system/node, which lists no NUMA node with cores of this process.")
    return found


def _homes(ranks, gpus, nodes):
    """Returns the NUMA node of each local rank."""
    if not gpus:
        return [nodes[rank * len(nodes) // ranks] for rank in range(ranks)]
    addresses = _addresses()
    found = []
    for gpu in gpus:
        names = [name for name in addresses if name == gpu or (gpu.startswith("GPU-") and name.startswith(gpu))]
        if not names:
            raise LaunchError(
                f"--numa-binding found no GPU {gpu} in /proc/driver/nvidia/gpus, only {', '.join(addresses) or 'none'}. "
                "Leave the flag out."
            )
        address = addresses[names[0]]
        found.append(_number(ROOT / "sys/bus/pci/devices" / address / "numa_node"))
    return [max(found[rank % len(found)], 0) for rank in range(ranks)]  # -1: there is only one node


def _addresses():
    """Returns the PCI address of each GPU that this process may open, by UUID and by number, which CUDA sorts by address."""
    found, number = {}, 0
    for path in sorted((ROOT / "proc/driver/nvidia/gpus").glob("*/information")):
        facts = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        device = ROOT / f"dev/nvidia{facts.get('Device Minor', '').strip()}"
        if os.access(device, os.R_OK | os.W_OK):  # under Slurm, the files of other jobs' GPUs exist
            found[str(number)] = found[facts.get("GPU UUID", "").strip()] = path.parent.name
            number += 1
    return found


def _share(groups, place, of, node):
    """Returns share number `place` of `of` equal shares of whole physical cores; the first shares get the remainder."""
    if len(groups) < of:
        raise LaunchError(
            f"--numa-binding exclusive: NUMA node {node} has {len(groups)} physical cores for {of} ranks. Use node, or fewer ranks."
        )
    each, more = divmod(len(groups), of)
    begin = place * each + min(place, more)
    return frozenset().union(*groups[begin : begin + each + (place < more)])


def _groups(cores, together):
    """Returns groups of cores, in the order of their first core."""
    groups = {together(core) & cores for core in cores}
    return sorted(groups, key=min)


def _socket(cores):
    return _number(_topology(min(cores)) / "physical_package_id")


def _siblings(core):
    return _list(_topology(core) / "thread_siblings_list")


def _last_cache(core):
    caches = (ROOT / f"sys/devices/system/cpu/cpu{core}/cache").glob("index[0-9]*")
    of_data = [cache for cache in caches if (cache / "type").read_text().strip() in ("Unified", "Data")]
    if not of_data:
        raise LaunchError(
            f"--numa-binding core-complex needs /sys/devices/system/cpu/cpu{core}/cache, which lists no cache of data."
        )
    return _list(max(of_data, key=lambda cache: _number(cache / "level")) / "shared_cpu_list")


def _topology(core):
    return ROOT / f"sys/devices/system/cpu/cpu{core}/topology"


def _list(path):
    """Reads a list such as `0-3,8`."""
    ranges = (part.split("-") for part in _read(path).split(",") if part)
    return frozenset(core for ends in ranges for core in range(int(ends[0]), int(ends[-1]) + 1))


def _number(path):
    return int(_read(path))


def _read(path):
    try:
        return path.read_text().strip()
    except OSError as error:
        raise LaunchError(f"--numa-binding needs {path}: {error.strerror}.") from None
