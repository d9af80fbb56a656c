"""Attacks on the rendezvous of launchers: it takes no longer, and the attackers are named."""

import contextlib
import itertools
import random
import re
import socket
import threading
import time

import pytest
from launching import ROOT, call, listens, program, python, wait_for

from launch.network import callers
from launch.network.callers import REASONS, SILENT, SLOW, Callers
from launch.network.connection import SignedConnection
from launch.network.messages import Hello

UNREADABLE, OTHER_SECRET = REASONS.values()
NONCE = b"0123456789abcdef" * 2


def node(launch, port, number, *flags, secret="right", **options):
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120", "--node-rank", number]
    return launch(*common, *flags, *python("pass"), env={"LAUNCH_SECRET": secret}, **options)


class Attacker:
    """Calls a port until the end of the test, in threads."""

    def __init__(self, port):
        self.port = port
        self.ends = threading.Event()
        self.threads, self.connections = [], []

    def connect(self):
        self.connections.append(call(self.port))
        return self.connections[-1]

    def repeat(self, action):
        def run():
            while not self.ends.is_set():
                with contextlib.suppress(OSError):
                    action()

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def end(self):
        self.ends.set()
        for thread in self.threads:
            thread.join()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def attacker(port):
    attacker = Attacker(port)
    yield attacker
    attacker.end()


def garbage(attacker):
    def send():
        with call(attacker.port) as connection:
            connection.sendall(random.randbytes(5000))
            connection.recv(100)

    attacker.repeat(send)
    return UNREADABLE


def idle_flood(attacker):
    for _ in range(2):
        attacker.repeat(lambda: attacker.connect() if len(attacker.connections) < 600 else call(attacker.port).close())
    return SILENT


def slow_sender(attacker):
    connection = attacker.connect()
    rest = itertools.cycle(NONCE)

    def send():
        time.sleep(0.02)
        connection.sendall(bytes([next(rest)]))

    attacker.repeat(send)
    return SLOW


def enormous_message(attacker):
    def send():
        with call(attacker.port) as connection:
            connection.sendall(NONCE)
            while True:
                connection.sendall(b"a" * 65536)

    attacker.repeat(send)
    return UNREADABLE


def replay(attacker):
    """Replays the connection of a launcher with the right secret to another node 0."""
    ours, theirs = socket.socketpair()
    caller, called = (SignedConnection(end, b"right", server=server) for end, server in ((ours, False), (theirs, True)))
    spoken = theirs.recv(100)
    ours.recv(100)
    caller._key = called._key = b"of that call"
    caller.send(Hello(1))
    spoken += theirs.recv(1000)

    def send():
        with call(attacker.port) as connection:
            connection.sendall(spoken)
            while connection.recv(100):
                pass

    attacker.repeat(send)
    return OTHER_SECRET


ATTACKS = [garbage, idle_flood, slow_sender, enormous_message, replay]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nodes_meet_during_an_attack_and_the_attacker_is_named(launch, port, attacker, attack, tmp_path):
    with open(tmp_path / "said", "w+") as said:
        zero = node(launch, port, 0, stderr=said)
        wait_for(lambda: listens(port), "node 0")
        named = attack(attacker)
        lines = [f"[launch] a caller from 127.0.0.1 {named}"] if named in REASONS.values() else []
        wait_for(lambda: all(line in (tmp_path / "said").read_text() for line in lines), lines)
        one = node(launch, port, 1)
        assert (zero.finish()[0], one.finish()[0]) == (0, 0), said.read()
        said.seek(0)
        assert [line for line in said.read().splitlines() if not line.endswith(SLOW)] == lines


@pytest.mark.parametrize("attack", ATTACKS)
def test_during_an_attack_the_timeout_holds_and_names_the_attacker(launch, port, attacker, attack):
    zero = node(launch, port, 0, "--rdzv-timeout", "2")
    wait_for(lambda: listens(port), "node 0")
    named = attack(attacker)
    code, _, err = zero.finish()
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: node 0 waited 2 s for node 1") and named in last


def test_a_node_with_another_secret_and_node_0_both_report_it(launch, port):
    zero = node(launch, port, 0, "--rdzv-timeout", "6")
    wait_for(lambda: listens(port), "node 0")
    code, _, err = node(launch, port, 1, secret="wrong").finish()
    assert code == 2 and err == f"error: 127.0.0.1:{port} is not node 0 of this run: its LAUNCH_SECRET differs.\n"
    code, _, err = zero.finish()
    assert code == 1 and "127.0.0.1 has another LAUNCH_SECRET (1x)" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_limit_on_open_files_only_delays_the_rendezvous(launch, port, attacker):
    """Node 0 can hold about twenty of 200 idle connections."""
    zero = node(launch, port, 0, prefix=("sh", "-c", 'ulimit -n 50; exec "$@"', "sh"))
    wait_for(lambda: listens(port), "node 0")
    for _ in range(200):
        attacker.connect()
    one = node(launch, port, 1)
    assert [zero.finish()[0], one.finish()[0]] == [0, 0]


def sends(words):
    def answer(connection):
        connection.sendall(words)
        connection.recv(100)

    return answer


def trickles(connection):
    for byte in NONCE * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def floods(connection):
    connection.sendall(NONCE)
    while True:
        connection.sendall(b"a" * 65536)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (sends(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 100), "the process that answers is not a launcher"),
        (sends(b""), "it closed the connection"),
        (sends(NONCE + b'{"kind": "Endpoint", "port": 1}\n'), "the process that answers is not a launcher"),
        (floods, ("the process that answers is not a launcher", "timed out", "it does not answer in time")),
        (trickles, ("timed out", "it does not answer in time")),
    ],
    ids=["another service", "silence", "no signature", "an enormous message", "a slow sender"],
)
def test_a_node_that_connects_to_another_service_times_out_and_says_what_it_found(launch, port, answer, why):
    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                answer(connection)

    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=serve, daemon=True).start()
        code, _, err = node(launch, port, 1, "--rdzv-timeout", "1").finish()
        server.shutdown(socket.SHUT_RDWR)
    assert code == 1
    found = err.splitlines()[-1].removeprefix(f"error: node 1 waited 1 s for 127.0.0.1:{port}: ")
    assert found in (why if isinstance(why, tuple) else (why,)), err


@pytest.fixture
def room(monkeypatch):
    """A listener with a fake clock. Returns the callers, the address, and the time."""
    monkeypatch.setattr(callers, "is_trusted", lambda connected: True)
    hands = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Callers(b"", most=3, clock=lambda: hands[0])
        found.listen(listener, lambda caller, message: None)
        yield found, listener.getsockname(), hands
        found.close()


def test_a_slow_caller_is_dropped_after_its_deadline(room):
    found, address, hands = room
    with socket.create_connection(address) as caller:
        found.serve(1)
        caller.sendall(b"012")
        found.serve(1)
        hands[0] = callers.PATIENCE - 0.1
        found.serve(0)
        assert not found.dropped
        hands[0] = callers.PATIENCE
        found.serve(0)
        assert dict(found.dropped) == {("127.0.0.1", callers.SLOW): 1}
        with pytest.raises(ConnectionResetError):
            caller.recv(100) and caller.recv(100)


def test_the_oldest_caller_is_dropped_for_a_new_one(room):
    found, address, _ = room
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(address))
            found.serve(1)
        assert len(found._waiting) == 3
        assert dict(found.dropped) == {("127.0.0.1", SILENT): 2}
        assert found.summary() == f"127.0.0.1 {SILENT} (5x)"  # with callers that still wait


def test_the_port_of_the_rendezvous_is_free_at_once_after_an_attack(launch, port, attacker):
    """A rank may listen there without SO_REUSEADDR, because node 0 leaves no connection in TIME_WAIT."""
    garbage(attacker)
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120"]
    nodes = [launch(*common, "--node-rank", number, *program("environment_rank.py")) for number in range(2)]
    assert [each.finish()[0] for each in nodes] == [0, 0]


def test_what_the_ranks_send_each_other_is_never_a_pickle():
    """Any process that reaches the port of a rank may send messages to it (README.md, "Ports")."""
    pickles = r"\b(cloudpickle|pickle\.loads?|allgather_object|broadcast_object|allow_pickle=True)\b"
    sources = [path for folder in ("callbacks", "launch", "recipes") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in sources if re.search(pickles, path.read_text())] == []
