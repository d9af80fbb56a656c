"""On its own host, a launcher talks only to processes of its user and of root."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from launching import need_horovod, python, sh, skip, wait_for
from processes import PROGRAMS

from launch.network import peers

OTHER, ANOTHER = 65534, 65533  # users


@pytest.fixture
def as_root():
    if os.geteuid():
        skip("ROOT", "only root can be several users")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def connect(listener, as_root):
    """Connects a user to a server of this process. Returns the end of the user and the end of the server."""
    with contextlib.ExitStack() as stack:

        def connect(user, family=socket.AF_INET):
            os.seteuid(user)
            try:
                caller = stack.enter_context(socket.socket(family))
            finally:
                os.seteuid(0)
            host = "::ffff:127.0.0.1" if family == socket.AF_INET6 else "127.0.0.1"
            caller.connect((host, listener.getsockname()[1]))
            return caller, stack.enter_context(listener.accept()[0])

        yield connect


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("unavailable", ["_ask_kernel", "_read_proc"])
def test_only_the_same_user_and_root_are_trusted(connect, monkeypatch, family, unavailable):
    monkeypatch.setattr(peers, unavailable, lambda *ends: iter(()))
    found = {}
    for me in (0, OTHER):
        monkeypatch.setattr(peers.os, "geteuid", lambda me=me: me)
        found[me] = [peers.is_trusted(connect(user, family)[1]) for user in (0, OTHER, ANOTHER)]
    assert found == {0: [True, False, False], OTHER: [True, True, False]}


def test_each_user_is_reported_once(connect, capfd):
    peers._report.cache_clear()
    for user in (OTHER, OTHER, ANOTHER):
        peers.is_trusted(connect(user)[1])
    assert capfd.readouterr().err == (
        "[launch] refused a connection from this host, which belongs to user 65534\n"
        "[launch] refused a connection from this host, which belongs to user 65533\n"
    )


@pytest.mark.parametrize("unavailable", ["_ask_kernel", "_read_proc", None])
def test_a_caller_that_has_closed_its_socket_does_not_count_as_root(connect, monkeypatch, unavailable):
    if unavailable:
        monkeypatch.setattr(peers, unavailable, lambda *ends: iter(()))
    caller, connection = connect(OTHER)
    caller.sendall(b"PUT /global/0 HTTP/1.0\r\n\r\n")
    ends = caller.getsockname(), caller.getpeername()
    assert peers._user_of(*ends) == OTHER
    caller.close()
    assert peers._user_of(*ends) is None
    assert not peers.is_trusted(connection)
    caller, connection = connect(OTHER)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close resets the connection
    caller.close()
    assert not peers.is_trusted(connection)


def test_a_connection_that_closes_during_the_user_look_up_is_refused(connect, monkeypatch):
    caller, connection = connect(OTHER)

    def look(*ends):
        caller.close()
        return 0

    monkeypatch.setattr(peers, "_user_of", look)
    assert not peers.is_trusted(connection)


class Connection:
    """Its two ends."""

    def __init__(self, peer, own):
        self.getpeername, self.getsockname = lambda: (peer, 1), lambda: (own, 2)


def test_connections_from_other_hosts_pass_and_those_from_any_local_address_are_checked(monkeypatch):
    monkeypatch.setattr(peers, "_user_of", lambda *ends: ANOTHER)
    assert peers.is_trusted(Connection("10.1.2.4", "10.1.2.3"))
    assert not peers.is_trusted(Connection("10.1.2.3", "10.1.2.3"))
    assert not peers.is_trusted(Connection("127.0.0.1", "127.0.0.1"))
    assert not peers.is_trusted(Connection("127.0.0.9", "10.1.2.3"))


def ask(user, port, request=""):
    """Returns the answer of a server to a process of a user."""
    found = subprocess.run(
        [sys.executable, "-S", PROGRAMS / "ask_as_user.py", str(user), str(port), request], capture_output=True, text=True
    )
    assert not found.returncode, found.stderr
    return found.stdout.strip()


def test_horovods_rendezvous_server_does_not_answer_other_users_of_this_host(launch, as_root):
    need_horovod()
    run = launch("--standalone", *sh("echo $HOROVOD_GLOO_RENDEZVOUS_PORT > port; sleep 1000"))
    port = run.file("port")
    request = "GET /global/0 HTTP/1.0"
    assert "404" in ask(0, port, request)
    assert ask(OTHER, port, request) == ""
    assert ask(OTHER, port, request) == ""
    assert "404" in ask(0, port, request)
    os.kill(run.process.pid, 15)
    assert run.finish()[2].count("refused a connection from this host, which belongs to user 65534") == 1


def node(launch, port, number, env=None):
    flags = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120", "--node-rank", number]
    return launch(*flags, *python("pass"), env=env)


@pytest.mark.parametrize(("env", "answered"), [({}, False), ({"LAUNCH_SECRET": "hush"}, True)])
def test_without_a_secret_node_0_answers_no_other_user_of_this_host(launch, port, as_root, env, answered):
    zero = node(launch, port, 0, env)
    wait_for(lambda: is_open(port), "node 0")
    assert len(ask(0, port)) == 32
    assert len(ask(OTHER, port)) == (32 if answered else 0)
    one = node(launch, port, 1, env)
    assert [zero.finish()[0], one.finish()[0]] == [0, 0]


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True


def test_a_node_without_a_secret_sends_nothing_to_node_0_of_another_user(launch, port, as_root):
    command = [sys.executable, "-S", PROGRAMS / "listen_as_user.py", str(OTHER), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "listens\n"
            flags = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "1", "--node-rank", "1"]
            code, _, err = launch(*flags, *sh("touch started")).finish()
            assert code == 1 and f"node 1 waited 1 s for 127.0.0.1:{port}: another user listens there" in err
        finally:
            other.terminate()
        assert "node" not in other.stdout.read()
