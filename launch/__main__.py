"""`python -m launch`: parses the command line, runs the ranks of this node, and returns an exit code."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence

from launch import console, exit_codes
from launch.command_line import dry_run
from launch.command_line.arguments import parse
from launch.command_line.config import LOOPBACK, LaunchConfig, new_run_id, secret_of
from launch.errors import LaunchError
from launch.horovod import rendezvous_server
from launch.network import rendezvous
from launch.network.ports import Ports
from launch.network.rendezvous import Member
from launch.run.coordinator import coordinate
from launch.run.node_worker import NodeWorker
from launch.run.nodes import LocalNode, Node, RemoteNode
from launch.signals import Signals, Stopped, ignore_late_signals
from launch.world import WorldSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the launcher. Returns its exit code."""
    console.open_standard_descriptors()
    try:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
        secret = secret_of(config, os.environ)
        ports = Ports()
        if config.dry_run:
            console.show(dry_run.render(config, _initial_world(config, ports)), console.OUT)
            return exit_codes.DONE
        return _run(config, secret, ports)
    except LaunchError as error:
        console.show(f"error: {' '.join(str(error).splitlines())}")
        return error.code
    except Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _run(config, secret, ports):
    node = LocalNode(config)
    try:
        signals = Signals()
        return (_run_coordinator if config.node == 0 else _run_node_worker)(config, secret, ports, node, signals)
    finally:
        node.close()


def _run_coordinator(config, secret, ports, node, signals):
    world = _initial_world(config, ports)
    members: dict[int, Member] = {}
    if config.nodes > 1:
        members = rendezvous.gather(config, secret, rendezvous.info_of(config, world.worker_ports[0]), signals.check)
        world = _joined_world(config, world, members)
    nodes: dict[int, Node] = {
        number: RemoteNode(number, member.info.host, member.connection, world.ranks(number), member.address)
        for number, member in members.items()
    }
    nodes[0] = node
    code, why = exit_codes.FAILED, "node 0: its launcher failed"
    try:
        node.make_log_dir(world.run_id)
        server = rendezvous_server.serve(LOOPBACK if config.local else "", {LOOPBACK, *world.addresses})
        if server is not None:
            world = dataclasses.replace(world, horovod=(world.addresses[0], server.server_address[1]))
        code, why = coordinate(config, nodes, signals, world, server)
    except Stopped as stopped:
        code, why = stopped.code, "stopped by a signal"
        raise
    except LaunchError as error:
        code, why = error.code, f"node 0: {error}"
        raise
    finally:
        for each in nodes.values():  # this node is the last, because it takes longest to end
            each.leave(code, why)
    return code


def _run_node_worker(config, secret, ports, node, signals):
    info = rendezvous.info_of(config, _worker_ports(config, ports))
    connection = rendezvous.join(config, secret, info, signals.check)
    return NodeWorker(node, connection, f"node 0 at {config.rendezvous[0]}", signals).run()


def _initial_world(config: LaunchConfig, ports: Ports) -> WorldSpec:
    """Returns the run as a single node knows it, and as node 0 knows it before the others join."""
    if not config.named_port:
        port = ports.take_next(config.master_port)
    else:  # a dry run may be made while the run trains
        port = config.master_port if config.dry_run else ports.take_named(config.master_port)
    return WorldSpec(
        nodes=config.nodes,
        per_node=config.per_node,
        run_id=config.run_id or new_run_id(),
        master_addr=config.master_addr,
        master_port=port,
        addresses=(LOOPBACK,) * config.nodes,
        worker_ports=(_worker_ports(config, ports),) * config.nodes,
        interfaces=("lo",) * config.nodes,
    )


def _joined_world(config: LaunchConfig, world: WorldSpec, members: Mapping[int, Member]) -> WorldSpec:
    """Returns the run as every node knows it after all have joined."""
    ordered = [members[number] for number in range(1, config.nodes)]
    own = ordered[0].address_of_node_0
    return dataclasses.replace(
        world,
        run_id=next((each.info.run_id for each in ordered if each.info.run_id), world.run_id),
        addresses=(own, *(member.address for member in ordered)),
        worker_ports=(world.worker_ports[0], *(member.info.worker_ports for member in ordered)),
        interfaces=(rendezvous.interface_of(own), *(member.info.interface for member in ordered)),
    )


def _worker_ports(config, ports):
    return tuple(ports.take_next(config.master_port + 1) for _ in range(config.per_node))


if __name__ == "__main__":
    code = main()
    ignore_late_signals()
    with contextlib.suppress(OSError, AttributeError):  # standard output may be closed, or full
        sys.stdout.flush()
    os._exit(code)
