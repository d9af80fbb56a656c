"""The environment of a Slurm job: nodes and ranks, conda, containers, modules, and errors in a submission."""

import shutil
import subprocess
import sys
import time
from random import Random

import pytest
from slurm_jobs import HOROVOD, MIRRORED, RECIPE, SHORT, checkpoints, hurry, wait_for_batch

from launch.command_line.slurm import first_node

pytestmark = pytest.mark.slow


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


def test_what_a_job_inherits_is_used_except_the_end_of_another_job(submit, tmp_path):
    """It is submitted in a conda environment, from within a job that soon ends, and sees no GPU although it has two."""
    conda = {"VENV": "", "CONDA_PREFIX": sys.prefix}
    modules = {"MODULES": "cuda/12.5 nccl", "BASH_FUNC_module%%": '() { echo "module $*" >> modules; }'}
    outer = {"SLURM_JOB_END_TIME": str(int(time.time()) + 5)}
    job = submit("--gpus-per-node=2", script=MIRRORED, recipe=SHORT, SRUN_FLAGS="--label", **conda, **modules, **outer)
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 0
    assert "THIS RUN USES NO GPU: CUDA_VISIBLE_DEVICES=0,1, and TensorFlow sees none." in job.output
    assert "\n0: " in job.output  # --label puts the task's number before each line
    assert (tmp_path / "modules").read_text() == "module load cuda/12.5\nmodule load nccl\n"


def test_a_batch_file_that_is_not_submitted_says_how_to_submit_it():
    for script in (MIRRORED, HOROVOD):
        done = subprocess.run(["bash", script, "-m", "recipes.mnist"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            f"error: {script.name} is a batch file, and needs job.sh beside it. "
            f"Submit it: sbatch slurm/{script.name} -m recipes.mnist"
        ]


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
    job = submit("-N2", recipe=RECIPE, VENV="none", CONTAINER=f"{container} --nv image.sif")
    wait_for_batch(tmp_path, 30)
    job.signal("USR1", "--batch")
    job.wait_for_attempt(2)
    hurry(tmp_path)
    assert job.end() == "COMPLETED", job.output
    assert job.restarts == 1 and "begins       from" in job.output
    assert checkpoints(tmp_path)[-1] == "model_batch_at_00110.weights.h5"


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
    module = {"BASH_FUNC_module%%": '() { [ "$2" != nowhere ]; }'}
    assert "there is no module nowhere" in said("-N1", MODULES="nowhere", **module)
    assert "unevenly over 2 nodes. Use --gpus-per-node" in said("-N2", "--gpus=5")
