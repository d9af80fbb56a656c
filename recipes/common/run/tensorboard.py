"""Curves and hyperparameters of a run in TensorBoard."""

import argparse
import os
import subprocess
from pathlib import Path

from callbacks import GlobalStepTensorBoard
from recipes.common.distribution import Distribution

# Flags that do not distinguish runs.
_LEFT_OUT = ("resume_from", "log_secs", "update_freq", "profile_batches", "skip_batches", "peak_tflops")


def tensorboard_callback(args: argparse.Namespace, distribution: Distribution) -> GlobalStepTensorBoard:
    """Returns the TensorBoard callback for the flags."""
    return GlobalStepTensorBoard(
        os.path.join(args.workdir, "tensorboard"),
        write_graph=False,
        update_freq=args.update_freq,
        profile_batch=args.profile_batches or 0,
        peak_tflops=args.peak_tflops,
        hparams=_hparams(args, distribution),
    )


def _hparams(args: argparse.Namespace, distribution: Distribution) -> dict[str, float | str | bool]:
    """Returns the flags, the devices and the version of the code."""
    flags = {name: value for name, value in vars(args).items() if value is not None and name not in _LEFT_OUT}
    surroundings = {
        "strategy": distribution.name,
        "replicas": distribution.replicas,
        "world_size": distribution.ranks.size if distribution.ranks else 1,
        "git_commit": _git_commit(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID", ""),
    }
    return {**flags, **{name: value for name, value in surroundings.items() if value != ""}}


def _git_commit() -> str:
    """Returns the commit of this checkout, with a `+` if files have changed; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
