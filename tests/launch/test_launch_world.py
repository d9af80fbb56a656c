"""The environment of a rank."""

import json
import os
import socket
from pathlib import Path

import pytest
from launching import need_horovod, program, sh, wait_for

from launch.world import World, read_world


def environments(run, count):
    return [json.loads((run.cwd / f"{rank}.json").read_text()) for rank in range(count)]


def test_code_for_torchrun_horovod_and_tensorflow_finds_its_rank(launch):
    run = launch("--nproc-per-node", "3", "--rdzv-id", "night", *program("environment_rank.py"), env={"LAUNCH_SECRET": "hush"})
    assert run.finish()[0] == 0
    found = environments(run, 3)
    for rank, environment in enumerate(found):
        for name, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 3,
            "LOCAL_WORLD_SIZE": 3,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "HOROVOD_RANK": rank,
            "HOROVOD_SIZE": 3,
            "HOROVOD_LOCAL_RANK": rank,
            "HOROVOD_LOCAL_SIZE": 3,
            "HOROVOD_CROSS_RANK": 0,
            "HOROVOD_CROSS_SIZE": 1,
            "HOROVOD_GLOO_IFACE": "lo",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": 300,
            "LAUNCH_RUN_ID": "night",
        }.items():
            assert environment[name] == str(value), name
        config = json.loads(environment["TF_CONFIG"])
        assert config["task"] == {"type": "worker", "index": rank}
        assert len(set(config["cluster"]["worker"])) == 3
        assert read_world(environment) == World(rank, rank, 3, 3, 0, 0, "night")
        assert "LAUNCH_SECRET" not in environment
    assert len({environment["MASTER_PORT"] for environment in found}) == 1


def test_threads_are_divided_among_the_ranks_unless_the_user_has_set_them(launch):
    run = launch("--nproc-per-node", "2", *program("environment_rank.py"), env={"TF_NUM_INTRAOP_THREADS": "5"})
    assert run.finish()[0] == 0
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    for environment in environments(run, 2):
        assert (environment["OMP_NUM_THREADS"], environment["TF_NUM_INTRAOP_THREADS"]) == (share, "5")


def test_rank_0_can_listen_on_master_port_and_two_launchers_get_different_ports(launch):
    first = launch(*program("listening_rank.py")).file("port")
    for count in (1, 2):  # these ports are not listened on, but the launchers avoid them
        run = launch(*sh("touch promised-$MASTER_PORT; exec sleep 1000"))
        wait_for(lambda run=run, count=count: len(list(run.cwd.glob("promised-*"))) == count, "another port")
    assert not (run.cwd / f"promised-{first}").exists()


def test_a_requested_port_that_is_in_use_is_refused(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = launch("--master-port", port, *sh("touch started")).finish()
    assert code == 2 and err.count("\n") == 1 and str(port) in err


def test_without_a_launcher_a_process_is_alone():
    assert read_world({}) == World()


def test_horovodruns_environment_is_read_too():
    names = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    assert read_world(names) == World(3, 1, 4, 2)


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"RANK": "-1"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_a_contradictory_environment_is_refused(wrong):
    with pytest.raises(ValueError, match="Received"):
        read_world(wrong)


def test_a_rank_that_sees_only_its_own_device_uses_it():
    assert [World(local_rank=2).device(visible) for visible in (4, 1, 2)] == [2, 0, 0]


def listening(pids):
    """Returns the addresses on which processes listen, in the kernel's hexadecimal format."""
    inodes = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    rows = [line.split() for path in ("/proc/net/tcp", "/proc/net/tcp6") for line in Path(path).read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def test_on_one_node_horovods_rendezvous_server_listens_only_on_the_loopback_interface(launch):
    need_horovod()
    run = launch("--standalone", *sh("echo $HOROVOD_GLOO_RENDEZVOUS_ADDR > address; sleep 1000"))
    assert run.file("address") == "127.0.0.1"
    assert listening([run.process.pid]) == ["0100007F"]


def test_the_launcher_never_imports_tensorflow_and_stays_small(launch):
    run = launch("--nproc-per-node", "4", *sh("touch started-$RANK; sleep 1000"))
    wait_for(lambda: len(list(run.cwd.glob("started-*"))) == 4, "the ranks")
    maps = Path(f"/proc/{run.process.pid}/maps").read_text()
    assert "tensorflow" not in maps
    megabytes = []
    others = [pid for pid, command in run.processes().items() if "launch" in command]  # the agent and the keeper
    for pid in (run.process.pid, *others):
        status = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
        megabytes.append(int(status[status.index("Pss:") + 1]) / 1024)
    assert len(megabytes) == 3 and sum(megabytes) < 60, megabytes
