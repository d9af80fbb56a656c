"""Jobs on a Slurm cluster: their commands and their checkpoints."""

import sys
from pathlib import Path

from launching import wait_for
from processes import PROGRAMS, ROOT

HOROVOD, MIRRORED = ROOT / "slurm" / "horovod.sbatch", ROOT / "slurm" / "mirrored.sbatch"
# One thread, because the ranks share the cores, and a sum's rounding depends on the number of threads.
ENVIRONMENT = {"VENV": sys.prefix, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"}
MLP = ["--model", "mlp"]
SHORT = ["-m", "recipes.mnist", *MLP, "--epochs", 2]
RECIPE = [PROGRAMS / "unhurried.py", *MLP, "--epochs", 5, "--save-freq", 10]
LONG = [*RECIPE, "--epochs", 1000000, "--keep-last", 2]
CHECKPOINTS = Path("runs/mnist/checkpoints")


def checkpoints(folder):
    return sorted(path.name for path in (folder / CHECKPOINTS).glob("model*"))


def last(folder):
    """Returns the path of the newest checkpoint, which exists."""
    return folder / CHECKPOINTS / checkpoints(folder)[-1]


def wait_for_batch(folder, batch):
    path = folder / CHECKPOINTS / f"model_batch_at_{batch:05d}.weights.h5"
    wait_for(path.exists, path)


def hurry(folder):
    """Makes a job train without waits."""
    (folder / "hurry").touch()


def wait_for_training(job, folder, attempt):
    """Waits until an attempt of a job has saved a checkpoint."""
    wait_for(lambda: job.output.count("begins  ") == attempt, f"training in attempt {attempt}: {job.output}")
    before = checkpoints(folder)[-1:]
    wait_for(lambda: checkpoints(folder)[-1:] > before, f"a checkpoint of attempt {attempt}: {job.output}")
