"""Peers that know the secret of a run, and send what no launcher sends: they are named, and nobody else is harmed."""

import contextlib
import dataclasses
import json
import threading

import pytest
from launching import PATIENCE, call, listens, python, wait_for

from launch.command_line.arguments import parse
from launch.network import callers, rendezvous
from launch.network.callers import REASONS
from launch.network.connection import SignedConnection
from launch.network.messages import Hello, Start


class Member:
    """A process that knows the secret and joins node 0 as node 1, with some fields of its description changed.

    Args:
        port: where node 0 listens.
        more: the changes of further descriptions in the same packet.
        changes: field -> value.
    """

    def __init__(self, port, *more, **changes):
        entry = self.connect(port)
        entry.send(Hello(1))
        (endpoint,) = self.receive(entry)
        self.connection = self.connect(endpoint.port)
        description = {"kind": "NodeInfo", **dataclasses.asdict(rendezvous.info_of(config_of(port, 1), (1,)))}
        self.send(*(description | each for each in (changes, *more)))

    def connect(self, port):
        connection = SignedConnection(call(port), b"right", server=False)
        while not connection.greeted:
            connection.receive()
        return connection

    def receive(self, connection):
        while not (found := connection.receive()):
            assert not connection.closed
        return found

    def send(self, *messages):
        """Sends messages in one packet, signed, whatever they contain."""
        packed = (self.connection._pack(json.dumps(each).encode()) + b"\n" for each in messages)
        self.connection._socket.sendall(b"".join(packed))

    def is_dropped(self):
        self.connection._socket.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            return self.connection._socket.recv(100) == b""
        return True


def config_of(port, number, nodes=2):
    return parse(["--nnodes", str(nodes), "--rdzv-endpoint", f"127.0.0.1:{port}", "--node-rank", str(number), *python("pass")], {})


@pytest.fixture
def meeting(port):
    """Begins to gather some nodes in a thread: returns the thread and the dict that receives the members."""

    def begin(nodes):
        found, config = {}, config_of(port, 0, nodes)
        run = threading.Thread(
            target=lambda: found.update(rendezvous.gather(config, b"right", rendezvous.info_of(config, (1,)), lambda: None))
        )
        run.start()
        wait_for(lambda: listens(port), "node 0")
        return run, found

    return begin


DESCRIPTIONS = [
    {"node": 7}, {"node": 0}, {"node": -1}, {"node": 10**30}, {"worker_ports": []}, {"worker_ports": [0]}, {"worker_ports": [1, 2]},
    {"run_id": "../../elsewhere"}, {"run_id": ""}, {"interface": "a\0b"}, {"host": "\x1b]0;title\x07\n"}, {"host": "h" * 10_000},
]  # fmt: skip


def test_peers_with_the_secret_and_a_hostile_description_are_named_and_the_meeting_goes_on(meeting, port, capfd, monkeypatch):
    monkeypatch.setattr(callers, "PATIENCE", 60.0)  # so that no caller is dropped for another reason
    run, found = meeting(2)
    for changes in DESCRIPTIONS:
        assert Member(port, **changes).is_dropped(), changes
    last = Member(port)
    run.join(PATIENCE)
    assert {number: member.info.node for number, member in found.items()} == {1: 1} and last
    assert capfd.readouterr().err == f"[launch] a caller from 127.0.0.1 {REASONS['unreadable']}\n"


def test_a_peer_that_sends_two_descriptions_in_one_packet_is_one_node(meeting, port):
    run, found = meeting(3)
    one, other = Member(port, {"nodes": 3, "node": 2}, nodes=3), Member(port, nodes=3, node=2)
    run.join(PATIENCE)
    assert found.keys() == {1, 2} and one and other


RECORD = {"rank": 0, "code": 1, "batch": None, "log": "", "lost": 0}  # of a rank of node 0


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "RankExited", "record": RECORD, "out_of_memory": False, "tail": ""},
        {"kind": "RankStalled", "rank": 10**6, "batch": None, "stopped": False, "seconds": 1.0},
        {"kind": "AttemptEnded", "records": []},
        {"kind": "SignalReceived", "number": 11},
        {"kind": "Start"},
    ],
    ids=lambda event: event["kind"],
)
def test_a_node_that_reports_what_no_launcher_reports_ends_the_run_in_one_line_with_its_address(launch, port, event):
    flags = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--node-rank", 0]
    zero = launch(*flags, *python("pass"), env={"LAUNCH_SECRET": "right"})
    wait_for(lambda: listens(port), "node 0")
    member = Member(port)
    assert isinstance(member.receive(member.connection)[0], Start)
    member.send(event)
    code, _, err = zero.finish()
    assert code == 1 and "Traceback" not in err
    assert "node 1: its launcher at 127.0.0.1 sent data that no launcher sends" in err.splitlines()
