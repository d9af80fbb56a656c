"""The rendezvous: how the launchers of several nodes find each other, and agree on what they start.

Node 0 listens on the port that all nodes know. A launcher with the secret of the run gets a second port there and disconnects, so
that rank 0 can use the first port when all nodes have joined. On the second port, each node sends what it is about to start. Node 0
compares the nodes and keeps the connections, over which it starts and ends all ranks. If the run stays on one host and has no
secret, both sides refuse processes of other users.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shlex
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch import console, exit_codes
from launch.command_line.config import LOOPBACK, LaunchConfig
from launch.errors import LaunchError
from launch.network.callers import MOMENT, MOST, PATIENCE, Caller, Callers
from launch.network.connection import Connection, SignedConnection, keep_alive
from launch.network.messages import Endpoint, Hello, Leave, Message, NodeInfo
from launch.network.peers import is_trusted

RETRY = 0.5
SIOCGIFADDR = 0x8915
READABLE = 1000  # characters of a command to send and to show
MUST_AGREE = {"nodes": "nodes", "per_node": "ranks on each node", "command": "command", "run_id": "run id"}


@dataclass(frozen=True)
class Member:
    """A node that has joined.

    Args:
        connection: the connection to its launcher.
        info: what the node is about to start.
        address: the address of the node as node 0 sees it.
        address_of_node_0: the address of node 0 as the node sees it.
    """

    connection: Connection
    info: NodeInfo
    address: str
    address_of_node_0: str


def info_of(config: LaunchConfig, worker_ports: Sequence[int]) -> NodeInfo:
    """Returns the description of this node for node 0."""
    return NodeInfo(
        nodes=config.nodes,
        per_node=config.per_node,
        command=abridged(shlex.join([os.path.basename(config.command[0]), *config.command[1:]])),
        run_id=config.run_id,
        node=config.node,
        host=socket.gethostname(),
        worker_ports=tuple(worker_ports),
        interface="",
    )


def abridged(command: str) -> str:
    """Returns a short command as it is, or the beginning of a long one with a checksum. Commands that differ remain different."""
    if len(command) <= READABLE:
        return command
    return f"{command[:READABLE]}... ({len(command)} characters, SHA-256 {hashlib.sha256(os.fsencode(command)).hexdigest()})"


def gather(config: LaunchConfig, secret: bytes, info: NodeInfo, check: Callable[[], None]) -> dict[int, Member]:
    """Waits on node 0 until all other nodes have joined.

    Args:
        config: the configuration of this node.
        secret: the secret of the run.
        info: the description of this node, to compare with the others.
        check: called repeatedly; raises an exception to end the wait.

    Raises:
        LaunchError: if a node does not join in time, or is about to start something else.
    """
    bind, backlog = LOOPBACK if config.local else "", config.nodes + 16
    try:
        entry = socket.create_server((bind, config.rendezvous[1]), backlog=backlog)
    except OSError as error:
        port = config.rendezvous[1]
        raise LaunchError(f"Port {port}, where the nodes meet, cannot be used: {error.strerror}. Choose another port.") from None
    members: dict[int, Member] = {}
    callers = Callers(secret, most=MOST + 2 * config.nodes)
    try:
        with entry, socket.create_server((bind, 0), backlog=backlog) as inner, contextlib.closing(callers):
            port = inner.getsockname()[1]
            callers.listen(entry, lambda caller, message: caller.connection.send(Endpoint(port)))
            callers.listen(inner, lambda caller, message: _add_member(members, info, callers, caller, message))
            deadline = time.monotonic() + config.rendezvous_timeout
            while len(members) < config.nodes - 1:
                check()
                if time.monotonic() >= deadline:
                    raise LaunchError(_missing(config, members, callers), code=exit_codes.FAILED)
                callers.serve(MOMENT)
    except LaunchError as error:
        for member in members.values():
            member.connection.send(Leave(error.code, str(error)))
        raise
    return members


def join(config: LaunchConfig, secret: bytes, info: NodeInfo, check: Callable[[], None]) -> Connection:
    """Connects another node to node 0, with retries, and sends its description. Arguments as in `gather`.

    Raises:
        LaunchError: if node 0 does not answer in time, or has another secret.
    """
    began = time.monotonic()
    deadline = began + config.rendezvous_timeout
    host, port = config.rendezvous
    reported = False
    while True:
        check()
        try:
            until = min(deadline, time.monotonic() + PATIENCE)
            with contextlib.closing(_Call(host, port, secret, until)) as entry:
                endpoint = entry.ask(Hello(config.node), until)
            call = _Call(host, endpoint.port, secret, until)
            call.connection.send(dataclasses.replace(info, interface=interface_of(call.own_address)))
            return call.keep()
        except OSError as error:
            why = error.strerror or error
            if time.monotonic() + RETRY > deadline:
                raise LaunchError(
                    f"node {config.node} waited {config.rendezvous_timeout:g} s for {host}:{port}: {why}", code=exit_codes.FAILED
                ) from None
            if not reported and time.monotonic() - began > PATIENCE:
                reported = True
                console.say(f"node {config.node} waits for node 0 at {host}:{port}: {why}")
            time.sleep(RETRY)


def interface_of(address: str) -> str:
    """Returns the name of the network interface with this address; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # the interface has no address
                found = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return ""


class _Call:
    """A connection to node 0.

    Args:
        host, port: where node 0 listens.
        secret: the secret of the run; if it is empty, a process of another user is refused.
        until: the time by which the peer must have sent its random number.

    Raises:
        OSError: if no launcher answers in time.
        LaunchError: if the peer has another secret.
    """

    def __init__(self, host: str, port: int, secret: bytes, until: float):
        self._name = f"{host}:{port}"
        self._connected = socket.create_connection((host, port), timeout=_left(until))
        try:
            self.connection = SignedConnection(self._connected, secret, server=False)
            while not self.connection.greeted:
                self._receive(until)
            if not secret and not is_trusted(self._connected):
                raise ConnectionError("another user listens there")
        except BaseException:
            self.close()
            raise

    @property
    def own_address(self) -> str:
        return self._connected.getsockname()[0]

    def ask(self, question: Hello, until: float) -> Endpoint:
        """Sends a question and waits for the answer."""
        self.connection.send(question)
        while True:
            for message in self._receive(until):
                if isinstance(message, Endpoint):
                    return message

    def keep(self) -> Connection:
        """Returns the connection, without a timeout."""
        keep_alive(self._connected)
        return self.connection

    def close(self) -> None:
        """Closes the connection."""
        self._connected.close()

    def _receive(self, until):
        self._connected.settimeout(_left(until))
        messages = self.connection.receive()
        if self.connection.problem == "authentication":
            raise LaunchError(f"{self._name} is not node 0 of this run: its LAUNCH_SECRET differs.")
        if self.connection.problem:
            raise ConnectionError("the process that answers is not a launcher")
        if self.connection.closed and not messages:
            raise ConnectionError("it closed the connection")
        return messages


def _left(until):
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it does not answer in time")
    return left


def _add_member(members: dict[int, Member], mine: NodeInfo, callers: Callers, caller: Caller, info: Message) -> None:
    if not isinstance(info, NodeInfo):
        return
    disagreement = _disagreement(mine, info, caller.address)
    if not disagreement and not (0 < info.node < mine.nodes and len(info.worker_ports) == mine.per_node):
        callers.refuse(caller)
        return
    if info.node in members:
        caller.connection.send(
            Leave(exit_codes.BAD_INPUT, f"There is already a node {info.node}. Give each node another --node-rank.")
        )
        return
    connection = callers.release(caller)
    keep_alive(caller.connected)
    members[info.node] = Member(connection, info, caller.address, caller.own_address)
    if disagreement:
        raise LaunchError(disagreement)


def _disagreement(mine: NodeInfo, info: NodeInfo, address: str) -> str:
    """Returns how the run that a node is about to start differs from that of node 0; empty if it does not."""
    for field, name in MUST_AGREE.items():
        one, other = getattr(mine, field), getattr(info, field)
        if one != other and (field != "run_id" or (one and other)):
            return (
                f"All nodes must start the same run. Node 0, on {mine.host}, has {name} {one}; "
                f"node {info.node}, on {info.host} ({address}), has {name} {other}"
            )
    return ""


def _missing(config, members, callers):
    missing = ", ".join(f"node {node}" for node in range(1, config.nodes) if node not in members)
    dropped = callers.summary()
    return f"node 0 waited {config.rendezvous_timeout:g} s for {missing}" + (f"; meanwhile {dropped}" if dropped else "")
