"""Settings for GPUs, and warnings if GPUs of the job stay idle."""

from collections.abc import Mapping, MutableMapping, Sequence

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


def idle_gpus(seen: int, ranks: int) -> str | None:
    """Returns a warning if there are more GPUs than ranks, because each rank trains on one GPU.

    Args:
        seen: the number of GPUs that each rank of this node sees.
        ranks: the number of ranks on this node.

    >>> idle_gpus(seen=1, ranks=8) is None  # Slurm shows each rank only its own GPU
    True
    """
    if ranks >= seen:
        return None
    idle = f"GPU {ranks} OF THIS NODE IS IDLE" if seen == ranks + 1 else f"GPUS {ranks} TO {seen - 1} OF THIS NODE ARE IDLE"
    return (
        f"{idle}: each rank trains on one GPU, and the number of ranks on this node is {ranks}. "
        "Start one rank per GPU: python -m launch --nproc-per-node gpu"
    )


def is_deterministic(flag: bool | None, devices: Sequence[str]) -> bool:
    """Returns whether to turn on TensorFlow's deterministic operations. The default is on without GPUs and off with GPUs.

    On GPUs, deterministic operations are slower (not measured on a GPU), and Keras does not use XLA.

    Args:
        flag: `--deterministic` (True), `--no-deterministic` (False), or neither (None).
        devices: the devices of this process, as TensorFlow names them.

    Source: https://www.tensorflow.org/api_docs/python/tf/config/experimental/enable_op_determinism

    >>> is_deterministic(None, ["/cpu:0"]), is_deterministic(None, ["/gpu:0"]), is_deterministic(True, ["/gpu:0"])
    (True, False, True)
    """
    return not any(device.startswith("/gpu") for device in devices) if flag is None else flag


def give_own_threads(environment: MutableMapping[str, str]) -> None:
    """Sets `TF_GPU_THREAD_MODE`: each GPU launches kernels from its own threads, which do not wait for the input pipeline.

    A mode that is already set stays: `TF_GPU_THREAD_MODE=global` restores TensorFlow's default. `TF_GPU_THREAD_COUNT` is the
    number of threads of each GPU, 2 by default. Not measured on a GPU.

    Args:
        environment: the environment of this process. TensorFlow reads it at the first operation.

    Source: https://www.tensorflow.org/guide/gpu_performance_analysis
    """
    environment.setdefault("TF_GPU_THREAD_MODE", "gpu_private")
