"""The cores and GPUs of this node, found without TensorFlow."""

import glob
import os
from collections.abc import Mapping


def cpus() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus(environment: Mapping[str, str]) -> list[str]:
    """Returns the names of the visible GPUs: those in CUDA_VISIBLE_DEVICES, or the numbers of the device files."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    present = sorted(path.removeprefix("/dev/nvidia") for path in glob.glob("/dev/nvidia[0-9]*"))
    if visible is None:
        return present
    return [name for name in visible.split(",") if name and name != "-1"] if present else []
