"""The launcher's command line: torchrun's flags, and one line for every mistake."""

import pytest
from launching import ROOT, sh

from launch.command_line.arguments import parse
from launch.errors import LaunchError

TOUCH = ("touch", "started")
MISTAKES = {
    "no rank": (["--nproc-per-node", "0"], "--nproc-per-node"),
    "more ranks than a node may have": (["--nproc-per-node", "30000"], "--nproc-per-node"),
    "a number without end": (["--nnodes", "9" * 5000], "--nnodes"),
    "a line break": (["--rdzv-id", "a\nb"], "--rdzv-id"),
    "half a rank": (["--nproc-per-node", "1.5"], "--nproc-per-node"),
    "no GPU": (["--nproc-per-node", "gpu"], "gpu"),
    "no node": (["--nnodes", "0"], "--nnodes"),
    "a range of nodes": (["--nnodes", "1:2"], "--nnodes"),
    "node 3 of 2": (["--nnodes", "2", "--node-rank", "3"], "--node-rank"),
    "two nodes without a rank": (["--nnodes", "2", "--master-addr", "node0"], "--node-rank"),
    "two nodes without an address": (["--nnodes", "2", "--node-rank", "0"], "--master-addr"),
    "two nodes without a secret": (["--nnodes", "2", "--node-rank", "0", "--master-addr", "node0"], "LAUNCH_SECRET"),
    "two standalone nodes": (["--standalone", "--nnodes", "2", "--node-rank", "0"], "--standalone"),
    "a port too high": (["--master-port", "65536"], "--master-port"),
    "an endpoint without a host": (["--nnodes", "2", "--node-rank", "0", "--rdzv-endpoint", ":1"], "--rdzv-endpoint"),
    "a run id that is a path": (["--rdzv-id", "../x"], "--rdzv-id"),
    "restarts below none": (["--max-restarts=-1"], "--max-restarts"),
    "a grace of years": (["--grace", "1e8"], "--grace"),
    "a binding that does not exist": (["--numa-binding", "rank"], "--numa-binding"),
    "no grace": (["--grace", "0"], "--grace"),
    "a rank that is not there": (["--local-ranks-filter", "1"], "--local-ranks-filter"),
    "a flag that does not exist": (["--nproc"], "--nproc"),
    "a log folder that is a file": (["--log-dir", "/dev/null/logs"], "/dev/null/logs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_flag_is_reported_in_one_line_before_a_rank_starts(launch, mistake):
    flags, named = MISTAKES[mistake]
    run = launch(*flags, "--no-python", *TOUCH, env={"CUDA_VISIBLE_DEVICES": ""})
    code, out, err = run.finish()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err
    assert not (run.cwd / "started").exists()


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["no_such_script.py"],
        ["."],
        ["-m", "no_such_module"],
        ["-m", "recipes.no_such_recipe"],
        ["-m", "recipes.common"],
        ["-m", "recipes/mnist.py"],
        ["--no-python", "no_such_program"],
        ["--no-python", ROOT / "README.md"],
        ["-m", "--no-python", "no-python"],
    ],
)
def test_a_command_that_cannot_run_is_reported_in_one_line(launch, command):
    code, out, err = launch("--nproc-per-node", "2", *command).finish()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert not command or str(command[-1]).rpartition(".")[0] in err


def test_flags_may_have_underscores_and_flags_of_the_script_are_passed_on(tmp_path):
    script = tmp_path / "train.py"
    script.touch()
    config = parse(["--nproc_per_node=3", "--max_restarts", "2", str(script), "--nproc_per_node", "9", "-m"], {})
    assert (config.per_node, config.max_restarts) == (3, 2)
    assert config.command[-4:] == [str(script), "--nproc_per_node", "9", "-m"]


def test_a_recipe_is_found_by_path_and_by_module_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["recipes/mnist.py"], {}).command[-1] == str(ROOT / "recipes" / "mnist.py")
    assert parse(["-m", "recipes.mnist"], {}).command[-2:] == ["-m", "recipes.mnist"]


def test_a_script_runs_in_the_directory_of_the_command(launch):
    run = launch("train.py", "--size", "3")
    (run.cwd / "train.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:])")
    code, out, _ = run.finish()
    assert (code, out) == (0, f"[0] {run.cwd} --size 3\n")


STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu-a[07-09,12]-ib,other1",
    "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "71",
    "LAUNCH_SECRET": "s",
}


def test_inside_an_srun_step_the_node_number_comes_from_slurm():
    config = parse(["--no-python", "true"], STEP)
    assert (config.nodes, config.node, config.master_addr, config.run_id) == (4, 2, "gpu-a07-ib", "71.0")
    assert parse(["--no-python", "true"], {**STEP, "SLURM_RESTART_COUNT": "2"}).run_id == "71.2"
    assert parse(["--no-python", "true"], {**STEP, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1"}).run_id == "70_1.0"


def test_what_the_command_line_says_comes_before_slurm():
    assert parse(["--standalone", "--no-python", "true"], STEP).nodes == 1
    assert parse(["--nnodes", "1", "--no-python", "true"], STEP).nodes == 1
    assert parse(["--no-python", "true"], {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}).nodes == 1


@pytest.mark.parametrize("nodes", ["1", "4"])
@pytest.mark.parametrize("flags", [[], ["--nnodes", "1"]])
def test_eight_tasks_of_a_step_are_not_eight_launchers_of_one_run(nodes, flags):
    step = {**STEP, "SLURM_STEP_NUM_NODES": nodes, "SLURM_STEP_NUM_TASKS": "8"}
    with pytest.raises(LaunchError, match=r"ntasks-per-node=1.*--standalone"):
        parse([*flags, "--no-python", "true"], step)
    assert parse(["--standalone", "--no-python", "true"], step).nodes == 1


@pytest.mark.parametrize(
    "flags, environment, hint",
    [
        ([], {"SLURM_JOB_NUM_NODES": "2"}, True),  # in the shell of salloc, or in a batch file without srun
        ([], {"SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": "4294967290"}, True),  # the shell of salloc is a separate step
        ([], {"SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1"}, False),  # srun -N1
        ([], {"SLURM_JOB_NUM_NODES": "1"}, False),
        ([], {}, False),
        (["--nnodes", "1"], {"SLURM_JOB_NUM_NODES": "2"}, False),
        (["--standalone"], {"SLURM_JOB_NUM_NODES": "2"}, False),
    ],
)
def test_a_warning_says_that_nodes_of_the_allocation_stay_idle(capfd, flags, environment, hint):
    assert parse([*flags, "--no-python", "true"], environment).nodes == 1
    warning = (
        "[launch] this starts ranks on one node; 1 of the allocation stay idle. "
        "To use all: srun --ntasks-per-node=1 python -m launch\n"
    )
    assert capfd.readouterr().err == (warning if hint else "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"SLURM_RESTART_COUNT": "x"},
        {"SLURM_NODEID": ""},
        {"SLURM_STEP_NUM_NODES": "many"},
        {"SLURM_STEP_NODELIST": ""},
        {"SLURM_JOB_ID": "../x"},
        {"SLURM_ARRAY_JOB_ID": "1"},
    ],
)
def test_what_slurm_never_writes_is_answered_in_one_line(wrong):
    with pytest.raises(LaunchError, match="Received: ") as error:
        parse(["--no-python", "true"], {**STEP, **wrong})
    assert "\n" not in str(error.value) and error.value.code == 2


def test_too_many_ranks_for_the_limit_of_open_files_are_refused_in_one_line(launch):
    few = ("sh", "-c", 'ulimit -n 100; exec "$@"', "sh")
    code, _, err = launch("--nproc-per-node", "20", *sh("touch started"), prefix=few).finish()
    assert (code, err) == (2, "error: --nproc-per-node 20 needs 140 open files; the limit is 100. Run: ulimit -n 140\n")


def test_help_has_every_flag_of_torchrun_that_is_supported(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    shown = capsys.readouterr().out
    flags = "standalone nproc-per-node nnodes node-rank master-addr master-port rdzv-endpoint rdzv-id"
    flags += " max-restarts monitor-interval log-dir local-ranks-filter module no-python dry-run numa-binding"
    for flag in [f"--{name}" for name in flags.split()]:
        assert flag in shown
    assert "_per_node" not in shown


def test_a_dry_run_prints_the_table_and_starts_nothing(launch):
    run = launch("--nproc-per-node", "3", "--dry-run", *sh("touch started"), env={"OMP_NUM_THREADS": "7"})
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()[:4]
    assert header.split() == ["rank", "host", "devices", "command", "environment"]
    for rank, row in enumerate(rows):
        assert row.startswith(f"{rank} ") and "sh -c 'touch started'" in row and f" RANK={rank} " in row
    assert "WORLD_SIZE=3" in out and "OMP_NUM_THREADS" not in out
    assert not (run.cwd / "started").exists() and not (run.cwd / "runs").exists()
