"""What differs on GPUs: defaults, threads, and GPUs that a job was given and TensorFlow does not see."""

from collections.abc import Mapping, MutableMapping, Sequence

_NONE = ("", "-1", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES; the last is Slurm's, for a job without GPUs


def unseen_gpus(environment: Mapping[str, str], seen: int) -> str | None:
    """Returns a warning if the environment names GPUs and TensorFlow sees none.

    Args:
        environment: of this process.
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
        "(also on a login node without GPUs). If it is installed, look at nvidia-smi on this node."
    )


def is_deterministic(flag: bool | None, devices: Sequence[str]) -> bool:
    """Returns whether TensorFlow's operations are to be deterministic: as the flag says, else on without GPUs and off with them.

    On CPUs deterministic operations cost nothing measurable. On GPUs some of them are slower, and Keras leaves XLA out.

    Args:
        flag: `--deterministic` (True), `--no-deterministic` (False), or neither (None).
        devices: of this process's replicas, as TensorFlow calls them.

    Source: https://www.tensorflow.org/api_docs/python/tf/config/experimental/enable_op_determinism

    >>> is_deterministic(None, ["/cpu:0"]), is_deterministic(None, ["/gpu:0"]), is_deterministic(True, ["/gpu:0"])
    (True, False, True)
    """
    return not any(device.startswith("/gpu") for device in devices) if flag is None else flag


def give_own_threads(environment: MutableMapping[str, str]) -> None:
    """Has each GPU launch its kernels from threads of its own, so that they do not wait behind the input pipeline's work.

    TensorFlow gives each GPU `TF_GPU_THREAD_COUNT` threads, 2 by default. A mode that the environment already names stays:
    `TF_GPU_THREAD_MODE=global` is TensorFlow's default. Not measured on a GPU yet.

    Args:
        environment: of this process; TensorFlow reads it when it makes its devices, at the first operation.

    Source: https://www.tensorflow.org/guide/gpu_performance_analysis, "Improve GPU kernel launch times".
    """
    environment.setdefault("TF_GPU_THREAD_MODE", "gpu_private")
