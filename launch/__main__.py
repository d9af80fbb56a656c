"""`python -m launch`: from the command line to the ranks of this node, and back to an exit code."""

import dataclasses
import os
import sys
from collections.abc import Sequence

from launch import exit_codes, horovod_rendezvous, rendezvous, table
from launch.arguments import LOOPBACK, Plan, new_run_id, parse, secret
from launch.errors import LaunchError
from launch.follower import Follower
from launch.node import Node
from launch.ports import Ports
from launch.signals import Signals, Stopped, ignore_late_signals
from launch.supervisor import supervise
from launch.world import Layout


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the launcher. Returns its exit code."""
    try:
        plan = parse(sys.argv[1:] if argv is None else argv, os.environ)
        shared = secret(plan, os.environ)
        ports = Ports()
        if plan.dry_run:
            print(table.render(plan, _alone(plan, ports)))
            return exit_codes.DONE
        return _run(plan, shared, ports)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _run(plan, shared, ports):
    node = Node(plan)  # forks, so it comes before anything that has threads
    try:
        signals = Signals()
        return (_lead if plan.node == 0 else _follow)(plan, shared, ports, node, signals)
    finally:
        node.close()


def _lead(plan, shared, ports, node, signals):
    layout = _alone(plan, ports)
    members = {}
    if plan.nodes > 1:
        members = rendezvous.gather(plan, shared, rendezvous.facts_of(plan, layout.worker_ports[0]), signals.check)
        layout = _together(plan, layout, members)
    node.make_log_dir(layout.run_id)
    server = horovod_rendezvous.serve(LOOPBACK if plan.local else "", {LOOPBACK, *layout.addresses})
    if server is not None:
        layout = dataclasses.replace(layout, horovod=(layout.addresses[0], server.server_address[1]))
    links = {number: member.link for number, member in members.items()}
    code, why = exit_codes.FAILED, "node 0: its launcher failed"
    try:
        code, why = supervise(plan, {0: node, **links}, signals, layout, server)
    except Stopped as stopped:
        code, why = stopped.code, "stopped by a signal"
        raise
    finally:
        for link in links.values():
            link.send({"do": "leave", "code": code, "why": why})
    return code


def _follow(plan, shared, ports, node, signals):
    facts = rendezvous.facts_of(plan, _worker_ports(plan, ports))
    link = rendezvous.join(plan, shared, facts, signals.check)
    return Follower(node, link, f"node 0 at {plan.meeting[0]}", signals).run()


def _alone(plan: Plan, ports: Ports) -> Layout:
    """The run as a single node knows it, and as node 0 does before the others come."""
    port = ports.take_named(plan.master_port) if plan.named_port else ports.take_next(plan.master_port)
    return Layout(
        nodes=plan.nodes,
        per_node=plan.per_node,
        run_id=plan.run_id or new_run_id(),
        master_addr=plan.master_addr,
        master_port=port,
        addresses=[LOOPBACK] * plan.nodes,
        worker_ports=[_worker_ports(plan, ports)] * plan.nodes,
        interfaces=["lo"] * plan.nodes,
    )


def _together(plan, layout, members):
    """The run as all nodes know it, once they came."""
    ordered = [members[number] for number in range(1, plan.nodes)]
    own = ordered[0].address_of_node_0
    return dataclasses.replace(
        layout,
        run_id=next((each.facts["run id"] for each in ordered if each.facts["run id"]), layout.run_id),
        addresses=[own, *(member.address for member in ordered)],
        worker_ports=[layout.worker_ports[0], *(member.facts["worker_ports"] for member in ordered)],
        interfaces=[rendezvous.interface_of(own), *(member.facts["interface"] for member in ordered)],
    )


def _worker_ports(plan, ports):
    return [ports.take_next(plan.master_port + 1) for _ in range(plan.per_node)]


if __name__ == "__main__":
    code = main()
    ignore_late_signals()
    sys.exit(code)
