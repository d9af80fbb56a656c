"""The cores and GPUs of this node, found without TensorFlow."""

import glob
import os
from collections.abc import Mapping


def cpus() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The names of the visible GPUs: what CUDA_VISIBLE_DEVICES says, or else one number for each device file."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    present = sorted(path.removeprefix("/dev/nvidia") for path in glob.glob("/dev/nvidia[0-9]*"))
    if visible is None:
        return present
    return [name for name in visible.split(",") if name and name != "-1"] if present else []
