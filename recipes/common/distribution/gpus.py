"""Warns if TensorFlow does not see the GPUs of a job."""

from collections.abc import Mapping

_NONE = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES; Slurm sets the last one for a job without GPUs


def unseen_gpus(environment: Mapping[str, str], seen: int) -> str | None:
    """Returns a warning if the environment contains GPUs and TensorFlow sees none.

    Args:
        environment: the environment of this process.
        seen: the number of GPUs that TensorFlow lists.

    >>> unseen_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}, seen=2) is None
    True
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if seen or visible in _NONE:
        return None
    allocated = environment.get("SLURM_GPUS_ON_NODE", "0")
    if visible is None and not (allocated.isdecimal() and int(allocated)):
        return None
    given = f"CUDA_VISIBLE_DEVICES={visible}" if visible is not None else f"Slurm has allocated {allocated} on this node"
    return (
        f"THIS RUN USES NO GPU: {given}, and TensorFlow sees none. Install TensorFlow with its CUDA libraries: make GPU=1 train "
        "(also on a login node without GPUs). If it is installed, check nvidia-smi on this node."
    )
