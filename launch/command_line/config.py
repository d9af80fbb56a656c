"""`LaunchConfig`: what the command line asks for, with every default resolved."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from launch import world
from launch.command_line.devices import cpus
from launch.errors import LaunchError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class LaunchConfig:
    """What the command line asks for.

    Args:
        command: what each rank executes.
        nodes, node, per_node: the number of nodes, the number of this node, and the ranks on each node.
        rendezvous: host and port where the launchers of other nodes connect to node 0.
        master_addr, master_port: address and port for the ranks.
        named_port: whether the port is fixed, so that no other port may be used.
        run_id: the name of the run; None: node 0 chooses it.
        log_dir: the directory of the ranks' logs; None: `runs/logs/RUN_ID`.
        cores: the cores that each local rank runs on; None: the cores of the launcher.
        shown: the local ranks whose output is shown; None: all ranks.
        max_restarts, monitor_interval, grace, stall_timeout, rendezvous_timeout: see the flags; times in seconds.
        dry_run: print what would start, and start nothing.
    """

    command: list[str]
    nodes: int
    node: int
    per_node: int
    rendezvous: tuple[str, int]
    master_addr: str
    master_port: int
    named_port: bool
    run_id: str | None
    log_dir: str | None
    cores: tuple[frozenset[int], ...] | None
    shown: frozenset[int] | None
    max_restarts: int
    monitor_interval: float
    grace: float
    stall_timeout: float | None
    rendezvous_timeout: float
    dry_run: bool

    @property
    def local(self) -> bool:
        """Whether the run stays on this machine, on the loopback interface."""
        return self.nodes == 1 or self.rendezvous[0] in ("localhost", LOOPBACK)

    def threads(self, local: int) -> int:
        """Returns the number of threads for a local rank: its share of the cores, and at most one per core that it runs on."""
        return max(1, min(cpus() // self.per_node, len(self.cores[local]) if self.cores else cpus()))


def new_run_id() -> str:
    """Returns a name for a run without `--rdzv-id`: the time, and four random characters."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def secret_of(config: LaunchConfig, environment: Mapping[str, str]) -> bytes:
    """Returns the secret that the launchers of the run share; empty if the run stays on this machine and has none.

    Raises:
        LaunchError: if the run spans several hosts and has no secret.
    """
    found = environment.get(world.SECRET, "")
    if not found and not config.local:
        raise LaunchError(
            f"A run on several nodes needs {world.SECRET}, the same random text on each node. Create it once with "
            f"export {world.SECRET}=$(openssl rand -hex 16), and pass it on."
        )
    return found.encode(errors="surrogateescape")
