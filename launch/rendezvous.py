"""How the launchers of several nodes find each other, and agree on what they start.

Node 0 listens on the port that every node was told. Who knows the run's secret learns there where the launchers talk, and
hangs up; when all have come, that port is free again, for rank 0 to listen on. Each node then says what it is about to start.
Where the run stays on one host and has no secret, both sides refuse a process of another user.
Node 0 compares, and keeps the connections: through them it starts and ends the ranks of all nodes.
"""

import contextlib
import fcntl
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch import exit_codes
from launch.arguments import LOOPBACK, Plan
from launch.errors import LaunchError
from launch.messages import Link, SealedLink
from launch.peers import is_trusted

PATIENCE = 5.0  # seconds for one step of a handshake
RETRY = 0.5
MOMENT = 0.1
SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Member:
    """A node that came.

    Args:
        link: to its launcher.
        facts: what it is about to start.
        address: its own, as node 0 sees it.
        address_of_node_0: as it sees node 0.
    """

    link: Link
    facts: dict[str, Any]
    address: str
    address_of_node_0: str


def facts_of(plan: Plan, worker_ports: list[int]) -> dict[str, Any]:
    """What a node says of itself; the nodes have to agree on the first four."""
    return {
        "nodes": plan.nodes,
        "ranks on each node": plan.per_node,
        "command": [os.path.basename(plan.command[0]), *plan.command[1:]],
        "run id": plan.run_id,
        "node": plan.node,
        "host": socket.gethostname(),
        "worker_ports": worker_ports,
    }


def gather(plan: Plan, secret: bytes, facts: dict[str, Any], check: Callable[[], None]) -> dict[int, Member]:
    """Node 0's side: waits for all other nodes.

    Args:
        plan: this node's.
        secret: the run's.
        facts: this node's, to compare with.
        check: called every moment; raises what ends the wait.

    Raises:
        LaunchError: if some do not come in time, or one is about to start something else.
    """
    bind = LOOPBACK if plan.local else ""
    came: queue.SimpleQueue[Member | str] = queue.SimpleQueue()
    try:
        meeting = socket.create_server((bind, plan.meeting[1]), backlog=plan.nodes + 16)
    except OSError as error:
        raise LaunchError(f"Port {plan.meeting[1]}, where the nodes meet, is in use: {error.strerror}. Name another one.") from None
    with meeting, socket.create_server((bind, 0), backlog=plan.nodes + 16) as talking:
        port = talking.getsockname()[1]
        _answer(meeting, secret, lambda caller: _show_the_way(caller, secret, port))
        _answer(talking, secret, lambda caller: came.put(_let_in(caller, secret)))
        try:
            return _wait_for_all(plan, facts, came, check)
        finally:  # wakes the two threads that wait for callers
            for listener in (meeting, talking):
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)


def join(plan: Plan, secret: bytes, facts: dict[str, Any], check: Callable[[], None]) -> Link:
    """Another node's side: finds node 0, with retries, and says what it is about to start. Arguments as for `gather`.

    Raises:
        LaunchError: if node 0 does not answer in time, or has another secret.
    """
    began, deadline = time.monotonic(), time.monotonic() + plan.meeting_timeout
    host, port = plan.meeting
    told = False
    while True:
        check()
        try:
            with _call(host, port, secret) as meeting:
                meeting.send({"node": plan.node})
                way = _answer_of(meeting, plan)
            link = _call(host, way["port"], secret)
            link.send({**facts, "interface": interface_of(link.own_address)})
            link.keep()
            return link
        except OSError as error:
            if time.monotonic() + RETRY > deadline:
                why = error.strerror or error
                raise LaunchError(
                    f"node {plan.node} waited {plan.meeting_timeout:g} s for {host}:{port}: {why}", code=exit_codes.FAILED
                ) from None
            if not told and time.monotonic() - began > PATIENCE:
                told = True
                print(f"[launch] node {plan.node} waits for node 0 at {host}:{port}", file=sys.stderr, flush=True)
            time.sleep(RETRY)


def interface_of(address: str) -> str:
    """The name of the network interface that has this address; empty if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                found = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return ""


class _Call(SealedLink):
    """A connection that ends with a `with` block, unless it is kept."""

    @property
    def own_address(self):
        return self._socket.getsockname()[0]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def keep(self):
        """Waits for ever from now on, but notices within seconds that the other machine is gone."""
        self._socket.settimeout(None)
        for option, value in (
            (socket.TCP_KEEPIDLE, 2),
            (socket.TCP_KEEPINTVL, 2),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, 8000),
        ):
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _call(host, port, secret):
    connection = socket.create_connection((host, port), timeout=PATIENCE)
    try:
        call = _Call(connection, secret, server=False)
        if not secret and not is_trusted(connection):
            raise ConnectionError("another user listens there")
        return call
    except OSError:
        connection.close()
        raise


def _answer_of(link, plan):
    messages = link.receive()
    if link.forged:
        host, port = plan.meeting
        raise LaunchError(f"{host}:{port} is not node 0 of this run: it has another LAUNCH_SECRET.")
    if not messages:
        raise ConnectionError("it hung up")
    return messages[0]


def _answer(listener, secret, greet):
    def listen():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the end of the meeting
                return
            if not secret and not is_trusted(connection):
                connection.close()
                continue
            threading.Thread(target=greet, args=(connection,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()


def _show_the_way(connection, secret, port):
    """Says where the launchers talk, and lets the caller hang up first: the port is then free at once."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(PATIENCE)
        link = SealedLink(connection, secret, server=True)
        link.receive()
        link.send({"port": 0 if link.forged else port})  # with another secret, the caller only sees that the seal is another
        link.receive()


def _let_in(connection, secret):
    try:
        connection.settimeout(PATIENCE)
        address, own = connection.getpeername()[0], connection.getsockname()[0]
        link = _Call(connection, secret, server=True)
        facts: list[dict[str, Any]] = []
        while not facts and not link.closed:
            facts = link.receive()
        if facts:
            link.keep()
            return Member(link, facts[0], address, own)
    except OSError:
        pass
    connection.close()
    return f"somebody without the run's LAUNCH_SECRET called from {address}"


def _wait_for_all(plan, facts, came, check):
    members: dict[int, Member] = {}
    deadline = time.monotonic() + plan.meeting_timeout
    try:
        while len(members) < plan.nodes - 1:
            check()
            try:
                member = came.get(timeout=MOMENT)
            except queue.Empty:
                if time.monotonic() < deadline:
                    continue
                missing = ", ".join(f"node {node}" for node in range(1, plan.nodes) if node not in members)
                raise LaunchError(f"node 0 waited {plan.meeting_timeout:g} s for {missing}", code=exit_codes.FAILED) from None
            if isinstance(member, str):
                print(f"[launch] {member}", file=sys.stderr, flush=True)
                continue
            if member.facts["node"] in members:
                member.link.send(
                    {"do": "leave", "code": exit_codes.BAD_INPUT, "why": f"There is a node {member.facts['node']} already."}
                )
                continue
            members[member.facts["node"]] = member
            _compare(facts, member.facts)
    except LaunchError as error:
        for member in members.values():
            member.link.send({"do": "leave", "code": error.code, "why": str(error)})
        raise
    return members


def _compare(mine, theirs):
    for what in ("nodes", "ranks on each node", "command", "run id"):
        one, other = mine[what], theirs[what]
        if one != other and (what != "run id" or (one and other)):
            if what == "command":
                one, other = " ".join(one), " ".join(other)
            raise LaunchError(
                f"All nodes have to start the same. Node 0, on {mine['host']}, has {what} {one}; "
                f"node {theirs['node']}, on {theirs['host']}, has {what} {other}"
            )
