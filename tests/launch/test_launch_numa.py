"""`--numa-binding`: which cores a rank gets, on machines that a folder describes, and that its process has them."""

import os

import pytest
from launching import PATIENCE
from processes import PROGRAM_ENVIRONMENT, run_program

from launch.command_line import numa
from launch.errors import LaunchError

# Two sockets of two NUMA nodes, each of two core complexes of two cores with two threads: core c has the threads c and c + 16.
NODES, CORES = 4, 16
GPUS = {"0000:17:00.0": 1, "0000:65:00.0": 1, "0000:ca:00.0": 3, "0000:e3:00.0": 3}  # address -> NUMA node
ALL = frozenset(range(2 * CORES))


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def machine(root, *, gpus=GPUS, minors=None):
    """Files as Linux and NVIDIA's driver have them."""
    for node in range(NODES):
        first = node * CORES // NODES
        write(root, f"sys/devices/system/node/node{node}/cpulist", f"{first}-{first + 3},{first + 16}-{first + 19}")
    for thread in ALL:
        core, of_thread = thread % CORES, f"sys/devices/system/cpu/cpu{thread}"
        write(root, f"{of_thread}/topology/thread_siblings_list", f"{core},{core + 16}")
        write(root, f"{of_thread}/topology/physical_package_id", core // 8)
        pair = core // 2 * 2
        caches = [
            (1, "Data", f"{core},{core + 16}"),
            (1, "Instruction", thread),
            (3, "Unified", f"{pair}-{pair + 1},{pair + 16}-{pair + 17}"),
        ]
        for index, (level, kind, shared) in enumerate(caches):
            for name, value in (("level", level), ("type", kind), ("shared_cpu_list", shared)):
                write(root, f"{of_thread}/cache/index{index}/{name}", value)
    for number, (address, node) in enumerate(gpus.items()):
        minor = minors[number] if minors else number
        facts = f"Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-{number}abc\nBus Location: \t {address}\nDevice Minor: \t {minor}"
        write(root, f"proc/driver/nvidia/gpus/{address}/information", facts)
        write(root, f"sys/bus/pci/devices/{address}/numa_node", node)
        write(root, f"dev/nvidia{minor}", "")
    return root


@pytest.fixture
def described(tmp_path, monkeypatch):
    """Describes a machine, and has the launcher see that."""

    def describe(**options):
        monkeypatch.setattr(numa, "ROOT", machine(tmp_path, **options))
        return tmp_path

    return describe


def bound(*arguments):
    return [numa.as_text(cores) for cores in numa.bind(*arguments)]


@pytest.mark.parametrize(
    "mode, cores",
    [
        ("node", ["4-7,20-23", "4-7,20-23", "12-15,28-31", "12-15,28-31"]),
        ("socket", ["0-7,16-23", "0-7,16-23", "8-15,24-31", "8-15,24-31"]),
        ("exclusive", ["4-5,20-21", "6-7,22-23", "12-13,28-29", "14-15,30-31"]),
        ("core-complex", ["4-5,20-21", "6-7,22-23", "12-13,28-29", "14-15,30-31"]),
    ],
)
def test_each_rank_is_bound_near_its_gpu(described, mode, cores):
    described()
    assert bound(mode, 4, ["0", "1", "2", "3"], ALL) == cores


def test_gpus_are_taken_in_the_order_of_cuda_visible_devices_by_number_or_uuid(described):
    described()
    assert bound("node", 2, ["3", "0"], ALL) == ["12-15,28-31", "4-7,20-23"]
    assert bound("node", 2, ["GPU-2abc", "GPU-0a"], ALL) == ["12-15,28-31", "4-7,20-23"]


def test_numbers_follow_the_addresses_and_not_the_names_of_the_devices(described):
    described(minors=[3, 2, 1, 0])
    assert bound("node", 2, ["0", "3"], ALL) == ["4-7,20-23", "12-15,28-31"]


def test_gpus_that_this_process_may_not_open_have_no_number(described):
    root = described()
    for minor in (0, 1):
        (root / f"dev/nvidia{minor}").unlink()
    assert bound("node", 1, ["0"], ALL) == ["12-15,28-31"]


def test_more_ranks_than_gpus_share_them_but_not_their_exclusive_cores(described):
    described()
    assert bound("exclusive", 3, ["0"], ALL) == ["4-5,20-21", "6,22", "7,23"]
    assert bound("core-complex", 3, ["0"], ALL) == ["4-5,20-21", "6-7,22-23", "4-5,20-21"]


def test_without_gpus_ranks_are_spread_over_the_nodes(described):
    described(gpus={})
    assert bound("node", 2, [], ALL) == ["0-3,16-19", "8-11,24-27"]
    assert bound("node", 8, [], ALL)[::2] == ["0-3,16-19", "4-7,20-23", "8-11,24-27", "12-15,28-31"]


def test_only_cores_that_the_launcher_may_use_are_given_out(described):
    described()
    allowed = frozenset({5, 6, 21, 12})
    assert bound("node", 4, ["0", "1", "2", "3"], allowed) == ["5-6,21", "5-6,21", "12", "12"]
    assert bound("exclusive", 2, ["0", "1"], allowed) == ["5,21", "6"]
    assert bound("core-complex", 2, ["0", "1"], allowed) == ["5,21", "6"]


def test_a_gpu_without_a_node_belongs_to_the_first(described):
    described(gpus={"0000:01:00.0": -1})
    assert bound("node", 1, ["0"], ALL) == ["0-3,16-19"]


@pytest.mark.parametrize(
    "mode, ranks, gpus, allowed, message",
    [
        ("exclusive", 5, ["0"], ALL, "NUMA node 1 has 4 physical cores for 5 ranks. Use node, or fewer ranks."),
        ("node", 1, ["9"], ALL, "found no GPU 9 in /proc/driver/nvidia/gpus, only 0, "),
        ("node", 1, ["MIG-1"], ALL, "found no GPU MIG-1"),
        (
            "node",
            1,
            ["0"],
            frozenset({0}),
            "the GPU of local rank 0 is on NUMA node 1, and this process may use none of its cores.",
        ),
    ],
)
def test_what_cannot_be_is_refused(described, mode, ranks, gpus, allowed, message):
    described()
    with pytest.raises(LaunchError) as raised:
        numa.bind(mode, ranks, gpus, allowed)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_system_that_lists_no_nodes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(numa, "ROOT", tmp_path)
    with pytest.raises(LaunchError, match="--numa-binding needs /sys/devices/system/node"):
        numa.bind("node", 1, [], ALL)


@pytest.fixture
def two_nodes(tmp_path):
    """A machine with the first two cores that this process may use, a NUMA node each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("ranks on different cores need two")
    for node, core in enumerate(cores):
        write(tmp_path / "machine", f"sys/devices/system/node/node{node}/cpulist", core)
    return tmp_path, cores


def launched(two_nodes, *flags):
    folder, _ = two_nodes
    shell = ["--no-python", "sh", "-c", "echo $OMP_NUM_THREADS $(grep Cpus_allowed_list /proc/self/status)"]
    flags = ["--standalone", "--nproc-per-node", "2", *flags, *shell]
    environment = {**PROGRAM_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    return run_program("bound_launcher.py", folder / "machine", *flags, cwd=folder, env=environment, timeout=PATIENCE)


def test_the_processes_of_the_ranks_run_on_these_cores_alone(two_nodes):
    done = launched(two_nodes, "--numa-binding", "node")
    assert done.returncode == 0, done.stderr
    _, cores = two_nodes
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] 1 Cpus_allowed_list: {core}" for rank, core in enumerate(cores)]


def test_without_the_flag_ranks_run_on_all_cores_of_the_launcher(two_nodes):
    done = launched(two_nodes)
    allowed = numa.as_text(frozenset(os.sched_getaffinity(0)))
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == [allowed, allowed]


def test_a_dry_run_shows_the_cores(two_nodes):
    done = launched(two_nodes, "--numa-binding", "exclusive", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: --numa-binding needs ")
    done = launched(two_nodes, "--numa-binding", "node", "--dry-run")
    _, cores = two_nodes
    for rank, core in enumerate(cores):
        assert f"cpu, 1 thread, cores {core}" in done.stdout.splitlines()[rank + 1]
