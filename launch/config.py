"""What a launcher was asked to do, with every default decided."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from launch import world
from launch.devices import cpus
from launch.errors import LaunchError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class LaunchConfig:
    """What the command line asks for.

    Args:
        command: what each rank executes.
        nodes, node, per_node: how many nodes, which one this is, and ranks on each.
        rendezvous: host and port where the launchers of several nodes find node 0.
        master_addr, master_port: for the ranks.
        named_port: the user named the port, so no other port will do.
        run_id: the run's name; None: node 0 decides.
        log_dir: where the ranks' logs are; None: `runs/logs/RUN_ID`.
        cores: the cores that each local rank runs on; None: those of the launcher.
        shown: the local ranks whose output is shown; None: all.
        max_restarts, monitor_interval, grace, stall_timeout, rendezvous_timeout: as the flags; times in seconds.
        dry_run: print what would be started, and start nothing.
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
        """No other machine takes part: everything stays on the loopback interface."""
        return self.nodes == 1 or self.rendezvous[0] in ("localhost", LOOPBACK)

    def threads(self, local: int) -> int:
        """How many threads a local rank's libraries may take: its share of the cores, and no more than it runs on."""
        return max(1, min(cpus() // self.per_node, len(self.cores[local]) if self.cores else cpus()))


def new_run_id() -> str:
    """A name for a run that was given none: when it began, and four letters against coincidence."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def secret_of(config: LaunchConfig, environment: Mapping[str, str]) -> bytes:
    """The secret that the run's launchers share; empty where no other machine takes part.

    Raises:
        LaunchError: if there is none and the run spans hosts.
    """
    found = environment.get(world.SECRET, "")
    if not found and not config.local:
        raise LaunchError(
            f"A run on several nodes needs {world.SECRET}, the same random text on each: "
            f"export {world.SECRET}=$(openssl rand -hex 16) once, and pass it on."
        )
    return found.encode(errors="surrogateescape")
