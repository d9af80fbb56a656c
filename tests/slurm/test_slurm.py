"""The table in slurm/README.md: what each event of Slurm does to a run, on a real cluster with real training."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import pytest
from cluster import Cluster, Job, require_slurm
from compare import assert_same_weights, datasets
from launching import need_horovod, wait_for
from processes import ROOT, USER_ENVIRONMENT

from callbacks import latest_checkpoint
from launch.slurm import first_node

pytestmark = pytest.mark.slow
HOROVOD, MIRRORED = ROOT / "slurm" / "horovod.sbatch", ROOT / "slurm" / "mirrored.sbatch"
# One thread, because the ranks share the cores, and a sum's rounding depends on the number of threads.
ENVIRONMENT = {"VENV": sys.prefix, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"}
BATCHES = 22 * 20
RECIPE = ["-m", "recipes.mnist", "--model", "mlp", "--epochs", 20, "--save-freq", 20]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three nodes."""
    require_slurm()
    need_horovod()
    started = Cluster(Path(tempfile.mkdtemp(prefix="slurm-")), 3)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(started.root)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "runs/mnist/checkpoints").glob("model*"))


def last(folder):
    return folder / "runs/mnist/checkpoints" / f"model_batch_at_{BATCHES:05d}.weights.h5"


def wait_for_batch(folder, batch):
    path = folder / "runs/mnist/checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"
    wait_for(path.exists, path, timeout=180)


@pytest.fixture
def submit(cluster, tmp_path):
    """Submits a job with two nodes and one rank on each."""

    def start(*flags, script=HOROVOD, recipe=RECIPE, cwd=tmp_path, **env):
        return cluster.submit(*flags, script, *recipe, cwd=cwd, env={**ENVIRONMENT, **env})

    return start


@pytest.fixture(scope="module")
def uninterrupted(cluster, tmp_path_factory):
    """The folder of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    job = cluster.submit("-N2", HOROVOD, *RECIPE, cwd=folder, env=ENVIRONMENT)
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 0
    return folder


def assert_same_end(job, folder, uninterrupted, restarts=1):
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == restarts, job.output
    assert_same_weights(last(uninterrupted), last(folder))


def test_two_nodes_with_two_ranks_each_write_the_files_of_a_single_run(submit, tmp_path, engine):
    recipe = [*RECIPE[:4], "--epochs", 4, "--save-freq", 20]
    job = submit("-N2", recipe=[*recipe, "--strategy", engine], NPROC_PER_NODE="2")
    single = tmp_path / "single"
    single.mkdir()
    command = [sys.executable, *map(str, recipe)]
    subprocess.run(command, cwd=single, env={**USER_ENVIRONMENT, **ENVIRONMENT}, check=True, capture_output=True)
    assert job.end() == "COMPLETED", job.output
    assert f"{engine}, 4 replicas" in job.output
    assert checkpoints(tmp_path) == checkpoints(single)
    assert sorted(path.name for path in (tmp_path / "runs/logs" / job.number).iterdir()) == [f"rank-{i}.log" for i in range(4)]
    newest = Path("runs/mnist/checkpoints") / checkpoints(single)[-1]
    a, b = datasets(single / newest), datasets(tmp_path / newest)
    for key, value in a.items():
        if value.dtype.kind == "f":
            assert abs(b[key] - value).max() <= 1e-4 * max(abs(value).max(), 1e-30), key


@pytest.mark.parametrize("name, engine", [("USR1", "horovod"), ("USR2", "horovod"), ("USR1", "multiworker")])
def test_after_a_warning_the_job_saves_is_requeued_and_resumes(submit, tmp_path, uninterrupted, name, engine):
    """Both engines give the same bits with two ranks, because a sum of two numbers has one order."""
    job = submit("-N2", recipe=[*RECIPE, "--strategy", engine])
    wait_for_batch(tmp_path, 40)
    job.signal(name, "--batch")
    assert_same_end(job, tmp_path, uninterrupted)
    assert "has saved and is requeued" in job.output


def test_warnings_in_the_first_second_requeue_and_the_run_completes(submit, tmp_path):
    recipe, newest, jobs = [*RECIPE[:4], "--epochs", 1], "runs/mnist/checkpoints/model_batch_at_00022.weights.h5", []
    command = [sys.executable, *map(str, recipe)]
    subprocess.run(command, cwd=tmp_path, env={**USER_ENVIRONMENT, **ENVIRONMENT}, check=True, capture_output=True)
    for i in range(6):
        folder = tmp_path / str(i)
        folder.mkdir()
        job = submit(script=HOROVOD if i % 2 else MIRRORED, recipe=recipe, cwd=folder)
        job.wait_for_attempt(1)
        time.sleep(i / 5)
        job.signal("USR1", "--batch")
        jobs.append((job, folder))
    for job, folder in jobs:
        assert job.end(400) == "COMPLETED", job.output
        assert job.restarts == 1, job.output
        assert_same_weights(tmp_path / newest, folder / newest)


def test_a_cancelled_job_saves_and_stays_cancelled(submit, tmp_path, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED", job.output
    wait_for(lambda: "; the same command resumes from" in job.output, "the save")
    assert job.restarts == 0
    assert not [path for path in (tmp_path / "runs/mnist/checkpoints").iterdir() if path.name.startswith(".")]


def test_a_crash_of_one_rank_fails_the_job(submit, tmp_path):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    os.kill(rank_of(job, "1"), signal.SIGKILL)
    assert job.end() == "FAILED", job.output
    assert job.show("ExitCode") == "137:0"
    assert job.restarts == 0


def rank_of(job, rank):
    """Returns the process of a rank of the job."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if {f"SLURM_JOB_ID={job.number}".encode(), f"RANK={rank}".encode()} <= set(environment):
            return int(path.name)
    raise AssertionError(f"no rank {rank}")


def test_after_scontrol_requeue_the_job_saves_and_resumes(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    cluster.run("scontrol", "requeue", job.number)
    assert_same_end(job, tmp_path, uninterrupted)


def test_a_node_that_goes_down_requeues_the_job(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    node = cluster.run("scontrol", "show", "hostnames", job.show("NodeList")).split()[1]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        assert_same_end(job, tmp_path, uninterrupted)
    finally:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)  # it may have resumed already


def test_a_preempted_job_saves_is_requeued_and_resumes(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2")
    wait_for_batch(tmp_path, 40)
    urgent = cluster.submit("-N3", "--partition=urgent", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    assert urgent.end() == "COMPLETED"
    assert_same_end(job, tmp_path, uninterrupted)


ENDLESS = [*RECIPE[:4], "--epochs", 1000000, "--save-freq", 500, "--keep-last", 2]


def test_before_its_time_limit_a_job_saves_is_requeued_and_resumes(submit, cluster):
    job = submit("--time=1", "--signal=B:USR1@15", script=MIRRORED, recipe=ENDLESS)
    job.wait_for_attempt(2, timeout=180)
    assert "has saved and is requeued" in job.output
    assert "DUE TO TIME LIMIT" not in job.output
    wait_for(lambda: "begins       from runs/mnist" in job.output, "the second attempt", timeout=120)
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"


def test_an_old_attempt_that_slurm_has_lost_cannot_commit_a_checkpoint(submit, cluster, tmp_path):
    job = submit(script=MIRRORED, recipe=ENDLESS)
    wait_for_batch(tmp_path, 500)
    node, old = job.show("NodeList"), rank_of(job, "0")
    cluster.kill_slurmd(node)
    try:
        job.wait_for_attempt(2, timeout=120)
        assert job.show("NodeList") != node
        os.kill(old, 0)  # the old attempt continues
        log = tmp_path / "runs/logs" / job.number / "rank-0.log"
        wait_for(lambda: "a later attempt of this run, took the lock" in log.read_text(), "the end of the old attempt", timeout=120)
        wait_for(lambda: not Path(f"/proc/{old}").exists(), "the end of the old attempt")
    finally:
        cluster.start_node(node)
    assert "begins       from runs/mnist" in job.output
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"
    damaged = subprocess.run(
        [sys.executable, "-m", "callbacks", "verify", tmp_path / "runs/mnist/checkpoints"], cwd=ROOT, check=False
    )
    assert damaged.returncode == 0


def test_the_first_node_of_a_list_is_that_of_scontrol(cluster):
    random = Random(0)

    def group():
        digits = random.choice((1, 1, 3))
        numbers = sorted(random.sample(range(1, 200), random.randrange(1, 5)))
        parts = [
            f"{n:0{digits}d}" if random.random() < 0.5 else f"{n:0{digits}d}-{n + random.randrange(5):0{digits}d}" for n in numbers
        ]
        name = random.choice(("n", "gpu", "rack1-node", "m2"))
        return random.choice((f"{name}[{','.join(parts)}]", name, f"{name}{random.randrange(20)}"))

    for nodes in ("n[1-3,7],m2", "gpu[001-016]", *(",".join(group() for _ in range(random.randrange(1, 4))) for _ in range(100))):
        assert first_node(nodes) == cluster.run("scontrol", "show", "hostnames", nodes).split()[0], nodes


def test_a_job_that_preemption_cancels_saves_and_is_requeued_by_the_batch_file(submit, tmp_path, uninterrupted, cluster):
    job = submit("-N2", "--partition=cancelled")
    wait_for_batch(tmp_path, 40)
    urgent = cluster.submit("-N3", "--partition=urgent", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    assert urgent.end() == "COMPLETED"
    assert_same_end(job, tmp_path, uninterrupted)
    assert re.search(r"stopped +by TERM( on another rank)?; the same command resumes from", job.output), job.output


def test_a_job_submitted_from_within_another_job_has_its_own_end_time(submit):
    job = submit(script=MIRRORED, recipe=SHORT, SLURM_JOB_END_TIME=str(int(time.time()) + 5))
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 0


def test_an_active_conda_environment_and_srun_flags_are_used_and_unseen_gpus_are_reported(submit):
    conda = {"VENV": "", "CONDA_PREFIX": sys.prefix}
    job = submit("--gpus-per-node=2", script=MIRRORED, recipe=SHORT, SRUN_FLAGS="--label", **conda)
    assert job.end() == "COMPLETED", job.output
    assert "THIS RUN USES NO GPU: CUDA_VISIBLE_DEVICES=0,1, and TensorFlow sees none." in job.output
    assert "\n0: " in job.output  # --label puts the task's number before each line


def test_elements_of_an_array_that_share_a_directory_are_refused(cluster, tmp_path):
    array = cluster.submit("--array=0-1", MIRRORED, *LONG, cwd=tmp_path, env=ENVIRONMENT)
    jobs = [Job(cluster, f"{array.number}_{i}", tmp_path) for i in range(2)]
    wait_for(lambda: any(job.show("JobState") == "FAILED" for job in jobs), "the refusal", timeout=120)
    cluster.run("scancel", array.number)
    ended = {job.end(): job for job in jobs}
    assert sorted(ended) == ["CANCELLED", "FAILED"]
    assert "same job array: give each element its own directory" in ended["FAILED"].output


def test_a_batch_file_that_is_not_submitted_says_how_to_submit_it():
    for script in (MIRRORED, HOROVOD):
        done = subprocess.run(["bash", script, "-m", "recipes.mnist"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            f"error: {script.name} is a batch file, and needs job.sh beside it. "
            f"Submit it: sbatch slurm/{script.name} -m recipes.mnist"
        ]


SHORT = [*RECIPE[:4], "--epochs", 2]
LONG = [*RECIPE[:4], "--epochs", 100000]

CONTAINER = """#!{sh}
# Like `apptainer exec --nv image.sif COMMAND`, with an image that contains Python but not Slurm.
[ "$1 $2" = "--nv image.sif" ] || exit 9
shift 2
export PATH={venv}/bin IMAGE=image.sif
exec "$@"
"""


def test_a_job_in_a_container_without_slurm_saves_and_is_requeued(submit, tmp_path):
    container = tmp_path / "contain"
    container.write_text(CONTAINER.format(sh=shutil.which("sh"), venv=sys.prefix))
    container.chmod(0o755)
    job = submit("-N2", recipe=[*RECIPE[:-1], 1], VENV="none", CONTAINER=f"{container} --nv image.sif")
    wait_for_batch(tmp_path, 22)
    job.signal("USR1", "--batch")
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 1 and "begins       from" in job.output
    assert checkpoints(tmp_path)[-1] == last(tmp_path).name


def test_modules_are_loaded_and_a_missing_module_is_named(submit, tmp_path):
    function = '() { echo "module $*" >> modules; [ "$2" != nowhere ]; }'
    job = submit("-N1", recipe=SHORT, MODULES="cuda/12.5 nccl", **{"BASH_FUNC_module%%": function})
    assert job.end() == "COMPLETED", job.output
    assert (tmp_path / "modules").read_text() == "module load cuda/12.5\nmodule load nccl\n"
    job = submit("-N1", recipe=SHORT, MODULES="nowhere", **{"BASH_FUNC_module%%": function})
    assert job.end() == "FAILED" and "there is no module nowhere" in job.output


def test_a_job_is_not_requeued_more_often_than_max_requeues(submit, tmp_path):
    job = submit("-N1", recipe=LONG, MAX_REQUEUES="1")
    for attempt in (1, 2):
        wait_for(
            lambda attempt=attempt: job.output.count("begins  ") == attempt,
            f"training in attempt {attempt}: {job.output}",
            timeout=120,
        )
        wait_for(lambda: checkpoints(tmp_path), "a checkpoint", timeout=120)
        job.signal("USR1", "--batch")
    assert job.end() == "FAILED", job.output
    assert job.restarts == 1 and job.show("ExitCode") == "75:0"
    assert "not requeued: the job was requeued 1 times (MAX_REQUEUES)" in job.output


def test_each_element_of_a_sweep_is_a_separate_run_that_is_requeued_separately(cluster, tmp_path):
    """Runs the lines of the README."""
    text = (ROOT / "slurm" / "README.md").read_text().split("## Sweeps")[1]
    sweep = text.split("cat > sweep.sh <<'EOF'\n")[1].split("EOF\n")[0]
    line = next(line for line in text.splitlines() if line.startswith("sbatch --array") and "sweep.sh" in line)
    (tmp_path / "sweep.sh").write_text(sweep.replace("-m recipes.mnist", "-m recipes.mnist --model mlp --epochs 60 --save-freq 22"))
    words = [word.replace("slurm/", f"{ROOT}/slurm/").replace("0-3", "0-1") for word in line.split()[1:] if "gpus" not in word]
    array = cluster.submit(*words, cwd=tmp_path, env=ENVIRONMENT)
    jobs = [Job(cluster, f"{array.number}_{i}", tmp_path) for i in range(2)]
    second = tmp_path / "runs/sweep/1/checkpoints"
    wait_for((second / "model_batch_at_00022.weights.h5").exists, "the second element's first checkpoint", timeout=180)
    jobs[1].signal("USR1", "--batch")
    assert [job.end() for job in jobs] == ["COMPLETED"] * 2, [job.output for job in jobs]
    assert [job.restarts for job in jobs] == [0, 1]
    found = [latest_checkpoint(tmp_path / f"runs/sweep/{i}/checkpoints") for i in range(2)]
    assert [each.batch for each in found] == [22 * 60] * 2
    assert all(f"--learning-rate {rate}" in job.output for rate, job in zip(("1e-3", "2e-3"), jobs, strict=True))
    logs = sorted(path.name for path in (tmp_path / "runs/logs").iterdir())
    assert logs == [f"{array.number}_{i}" for i in range(2)]


def test_errors_in_a_job_are_reported_at_once(submit, tmp_path, cluster):
    def said(*flags, **options):
        job = submit(*flags, **options)
        assert job.end() == "FAILED"
        assert job.show("ExitCode") == "2:0"
        return job.output

    assert "mirrored.sbatch trains on one node. For 2 nodes: sbatch -N 2" in said("-N2", script=MIRRORED)
    assert "each node must run one task" in said("-N2", "-n3", "--ntasks-per-node=2")
    assert f"there is no Python environment at {tmp_path}/.venv" in said(VENV="")
    assert "there is no Python environment at /nowhere" in said(VENV="/nowhere")
    assert "unevenly over 2 nodes. Use --gpus-per-node" in said("-N2", "--gpus=5")
