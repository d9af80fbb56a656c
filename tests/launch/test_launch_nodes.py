"""Several nodes find each other, agree, and end together. Launchers on one machine simulate the nodes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid

import pytest
from launching import need, need_horovod, program, sh, skip, wait_for
from processes import PROGRAMS


def pair(launch, port, *command, zero=(), one=(), both=(), **options):
    """Starts two launchers as two nodes of a run."""
    common = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120", *both]
    return [launch(*common, "--node-rank", node, *extra, *command, **options) for node, extra in enumerate((zero, one))]


def test_two_nodes_start_one_world_and_the_port_of_the_rendezvous_is_free(launch, port):
    nodes = pair(launch, port, *program("environment_rank.py"))
    assert [node.finish()[0] for node in nodes] == [0, 0]
    found = [json.loads((nodes[0].cwd / f"{rank}.json").read_text()) for rank in range(4)]
    assert [each["LOCAL_RANK"] for each in found] == ["0", "1", "0", "1"]
    assert [each["GROUP_RANK"] for each in found] == ["0", "0", "1", "1"]
    assert {each["WORLD_SIZE"] for each in found} == {"4"}
    assert {each["MASTER_PORT"] for each in found} == {str(port)}
    assert len({each["LAUNCH_RUN_ID"] for each in found}) == 1
    assert len({json.dumps(json.loads(each["TF_CONFIG"])["cluster"]) for each in found}) == 1
    assert len(set(json.loads(found[0]["TF_CONFIG"])["cluster"]["worker"])) == 4
    assert len(list(nodes[0].cwd.rglob("rank-*.log"))) == 4


def test_a_failure_on_one_node_ends_both_nodes_and_both_report_it(launch, port):
    nodes = pair(
        launch, port, *sh("echo > ready-$RANK; while [ ! -e ready-0 ]; do sleep 0.01; done; [ $RANK = 3 ] && exit 7; sleep 1000")
    )
    for node in nodes:
        code, _, err = node.finish()
        assert code == 7 and err.splitlines()[0] == f"rank 3 on {os.uname().nodename}: exit code 7"
        assert node.none_left()


def test_all_nodes_restart_together(launch, port):
    nodes = pair(launch, port, *sh("[ $LAUNCH_RESTARTS = 1 ] && echo second && exit; exit 7"), both=["--max-restarts", "2"])
    assert [node.finish()[0] for node in nodes] == [0, 0]
    assert {node.log(rank) for node in nodes for rank in range(4)} == {"second\n"}


def test_a_signal_to_one_launcher_reaches_all_ranks(launch, port):
    script = 'trap "echo heard >> heard-$RANK; exit 143" TERM; touch ready-$RANK; while :; do sleep 0.05; done'
    nodes = pair(launch, port, *sh(script))
    wait_for(lambda: len(list(nodes[0].cwd.glob("ready-*"))) == 4, "the ranks")
    os.kill(nodes[1].process.pid, signal.SIGTERM)
    assert [node.finish()[0] for node in nodes] == [143, 143]
    assert [nodes[0].file(f"heard-{rank}") for rank in range(4)] == ["heard"] * 4


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_launcher_is_killed_the_other_ends_and_names_it(launch, port, killed):
    nodes = pair(launch, port, *sh("touch ready-$RANK; sleep 1000"), both=["--max-restarts", "3"])
    wait_for(lambda: len(list(nodes[0].cwd.glob("ready-*"))) == 4, "the ranks")
    os.kill(nodes[killed].process.pid, signal.SIGKILL)
    code, _, err = nodes[1 - killed].finish()
    assert code == 1 and err.startswith(f"node {killed}") and "its launcher is gone" in err
    assert all(node.none_left() for node in nodes)


@pytest.mark.parametrize(
    ("zero", "one", "what"),
    [
        (["--rdzv-id", "a"], ["--rdzv-id", "b"], "run id"),
        (["--nproc-per-node", "1"], ["--nproc-per-node", "3"], "ranks on each node"),
        (["--nnodes", "3"], [], "nodes"),
    ],
)
def test_nodes_that_disagree_report_it_and_start_nothing(launch, port, zero, one, what):
    nodes = pair(launch, port, *sh("touch started"), zero=zero, one=one)
    for node in nodes:
        code, _, err = node.finish()
        assert code == 2 and f"has {what} " in err and "Traceback" not in err
    assert not (nodes[0].cwd / "started").exists()


def test_nodes_that_start_another_command_are_refused(launch, port):
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120"]
    nodes = [launch(*common, "--node-rank", node, *sh(f"touch started-{node}")) for node in range(2)]
    for node in nodes:
        code, _, err = node.finish()
        assert code == 2 and "has command" in err


@pytest.mark.parametrize(
    "command", [["true", *["a" * 100_000] * 3], ["true", "\u00e9" * 65_000]], ids=["300 kB", "characters that JSON escapes"]
)
def test_nodes_agree_on_a_long_command(launch, port, command):
    nodes = pair(launch, port, "--no-python", *command)
    assert [node.finish()[0] for node in nodes] == [0, 0]


def test_nodes_that_disagree_on_a_long_command_report_it_in_a_short_line(launch, port):
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120"]
    nodes = [launch(*common, "--node-rank", node, *sh("true"), size * "a") for node, size in enumerate((70_000, 50_000))]
    for node in nodes:
        code, _, err = node.finish()
        assert code == 2 and "has command sh -c true aaa" in err
        assert "70011 characters" in err and "50011 characters" in err and len(err) < 3000


def test_a_long_argument_that_node_0_cannot_use_ends_all_nodes_as_bad_input(launch, port):
    for node in pair(launch, port, *sh("true"), zero=["--log-dir", 131_060 * "a"]):
        code, _, err = node.finish()
        assert code == 2 and "The log directory" in err


def test_a_node_with_another_secret_is_refused_and_the_run_waits_for_the_right_one(launch, port):
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120"]
    zero = launch(*common, "--node-rank", "0", *sh("true"), env={"LAUNCH_SECRET": "right"})
    code, _, err = launch(*common, "--node-rank", "1", *sh("true"), env={"LAUNCH_SECRET": "wrong"}).finish()
    assert code == 2 and "its LAUNCH_SECRET differs" in err and err.count("\n") == 1
    one = launch(*common, "--node-rank", "1", *sh("true"), env={"LAUNCH_SECRET": "right"})
    assert [zero.finish()[0], one.finish()[0]] == [0, 0]


def test_an_unauthenticated_caller_cannot_end_the_rendezvous(launch, port):
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-timeout", "120"]
    zero = launch(*common, "--node-rank", "0", *sh("true"))
    silent = wait_for(lambda: _connect(port), "node 0")
    noisy = _connect(port)
    noisy.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
    one = launch(*common, "--node-rank", "1", *sh("true"))
    assert [zero.finish()[0], one.finish()[0]] == [0, 0]
    silent.close()
    noisy.close()


def _connect(port):
    with contextlib.suppress(OSError):
        return socket.create_connection(("127.0.0.1", port))


def test_a_node_that_waits_in_vain_names_the_missing_node(launch, port):
    common = ["--nnodes", "3", "--rdzv-timeout", "1", "--master-addr", "localhost", "--master-port", port]
    code, _, err = launch(*common, "--node-rank", "2", *sh("true")).finish()
    assert code == 1 and err == f"error: node 2 waited 1 s for localhost:{port}: Connection refused\n"
    code, _, err = launch(*common, "--node-rank", "0", *sh("true")).finish()
    assert code == 1 and err == "error: node 0 waited 1 s for node 1, node 2\n"


def test_a_signal_during_the_rendezvous_ends_the_launcher(launch, port):
    common = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--node-rank", "0"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)):
        zero = launch(*common, *sh("true"))
        wait_for(lambda: _connect(port), "node 0").close()
        os.kill(zero.process.pid, number)
        assert zero.finish()[0] == code


# Two network namespaces, joined by a cable, are as good as two machines.

ADDRESSES = ("10.97.31.1", "10.97.31.2")


def _ip(*args):
    return subprocess.run(["ip", *args], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def namespaces():
    """The names of two network namespaces that reach each other."""
    names = [f"n{uuid.uuid4().hex[:6]}-{end}" for end in "ab"]
    if shutil.which("ip") is None:
        skip("NAMESPACES", "network namespaces need iproute2")
    try:
        for name in names:
            _ip("netns", "add", name)
        cables = [f"v{name}"[:12] + name[-1] for name in names]
        _ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    except (subprocess.CalledProcessError, OSError) as error:
        skip("NAMESPACES", f"network namespaces cannot be made: {getattr(error, 'stderr', error)}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def across(launch, namespaces, *command, per_node=1, secrets=("hush", "hush")):
    """Starts two launchers, each in its own namespace."""
    common = ["--nnodes", "2", "--nproc-per-node", per_node, "--master-addr", ADDRESSES[0], "--rdzv-timeout", "120"]
    return [
        launch(
            *common,
            "--node-rank",
            node,
            *command,
            prefix=["ip", "netns", "exec", name],
            env={"LAUNCH_SECRET": secret},
        )
        for node, (name, secret) in enumerate(zip(namespaces, secrets, strict=True))
    ]


def test_a_run_across_hosts_needs_a_secret(launch, namespaces):
    zero, one = across(launch, namespaces, *sh("true"), secrets=("right", "wrong"))
    code, _, err = one.finish()
    assert code == 2 and "its LAUNCH_SECRET differs" in err
    os.kill(zero.process.pid, signal.SIGTERM)
    assert zero.finish()[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize("engine, killed, per_node", [("horovod", 1, 2), ("multiworker", 0, 1)])
def test_a_recipe_trains_across_two_hosts_and_ends_with_its_launcher(launch, namespaces, engine, killed, per_node):
    need(engine)
    recipe = ["-m", "recipes.mnist", "--strategy", engine, "--model", "mlp", "--epochs", 1000, "--save-freq", 10]
    nodes = across(launch, namespaces, *recipe, "--workdir", "run", per_node=per_node)
    saved = nodes[0].cwd / "run" / "checkpoints" / "model_batch_at_00020.weights.h5"
    wait_for(lambda: saved.exists() or any(node.process.poll() is not None for node in nodes), "batch 20", 300)
    assert saved.exists(), [node.finish() for node in nodes]
    assert f"{engine}, {2 * per_node} replicas" in nodes[0].log(0)
    os.kill(nodes[killed].process.pid, signal.SIGKILL)
    code, _, err = nodes[1 - killed].finish()
    assert code == 1
    assert err.startswith(f"node {killed}") and "its launcher is gone" in err
    assert all(node.none_left() for node in nodes)


@pytest.mark.slow
def test_when_a_host_falls_silent_the_others_end_and_name_it(launch, namespaces):
    """The network of the host is cut, so no packet tells the others."""
    nodes = across(launch, namespaces, *sh("touch ready-$RANK; sleep 1000"))
    wait_for(lambda: len(list(nodes[0].cwd.glob("ready-*"))) == 2, "the ranks")
    cable = f"v{namespaces[1]}"[:12] + namespaces[1][-1]
    _ip("-n", namespaces[1], "link", "set", cable, "down")
    try:
        for number, node in enumerate(nodes):
            code, _, err = node.finish()
            assert code == 1 and err.startswith(f"node {1 - number}") and "its launcher is gone" in err
            assert node.none_left()
    finally:
        _ip("-n", namespaces[1], "link", "set", cable, "up")


def test_horovods_rendezvous_server_answers_only_addresses_that_passed_the_handshake(launch, namespaces):
    need_horovod()
    _ip("-n", namespaces[1], "addr", "add", "10.97.31.3/24", "dev", f"v{namespaces[1]}"[:12] + namespaces[1][-1])
    nodes = across(launch, namespaces, *sh("echo $HOROVOD_GLOO_RENDEZVOUS_PORT > port-$RANK; sleep 1000"))
    port = nodes[0].file("port-1")

    def answer(source):
        command = ["ip", "netns", "exec", namespaces[1], sys.executable, "-S", PROGRAMS / "ask_from.py", ADDRESSES[0], port, source]
        found = subprocess.run(command, capture_output=True, text=True)
        return found.stdout.strip() or found.stderr.splitlines()[-1]

    assert "404" in answer(ADDRESSES[1])
    assert "404" not in answer("10.97.31.3")
