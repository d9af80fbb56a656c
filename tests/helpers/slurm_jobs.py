"""Jobs on a Slurm cluster: their commands and their checkpoints."""

import sys

from launching import wait_for
from processes import ROOT

HOROVOD, MIRRORED = ROOT / "slurm" / "horovod.sbatch", ROOT / "slurm" / "mirrored.sbatch"
# One thread, because the ranks share the cores, and a sum's rounding depends on the number of threads.
ENVIRONMENT = {"VENV": sys.prefix, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"}
BATCHES = 22 * 20
RECIPE = ["-m", "recipes.mnist", "--model", "mlp", "--epochs", 20, "--save-freq", 20]
SHORT = [*RECIPE[:4], "--epochs", 2]
LONG = [*RECIPE[:4], "--epochs", 100000]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "runs/mnist/checkpoints").glob("model*"))


def last(folder):
    return folder / "runs/mnist/checkpoints" / f"model_batch_at_{BATCHES:05d}.weights.h5"


def wait_for_batch(folder, batch):
    path = folder / "runs/mnist/checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"
    wait_for(path.exists, path, timeout=180)
