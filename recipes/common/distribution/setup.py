"""Sets up a run from its flags: devices, ranks, seeds, precision and determinism."""

import argparse
import importlib.util
import os
import warnings
from collections.abc import Callable

import keras
import tensorflow as tf

from callbacks import InputError
from callbacks.ranks import install
from launch.world import World, read_world
from recipes.common.distribution.engine_ranks import EngineRanks
from recipes.common.distribution.gpus import give_own_threads, idle_gpus, is_deterministic, unseen_gpus
from recipes.common.distribution.replicas import Distribution


def get_distribution(args: argparse.Namespace) -> Distribution:
    """Sets up devices, seeds, precision and determinism from the flags. Call it before any other function of TensorFlow.

    Args:
        args: the flags of `recipes.common.arguments`. Sets `args.deterministic` if the flag was not given.

    Raises:
        InputError: if the flags contradict each other, this machine, or the environment.
    """
    world = _world()
    name = _strategy(args, world)
    in_ranks = name in ENGINES
    devices = _devices(args.virtual_devices, world if in_ranks else None)  # GPUs must be selected before the first tensor
    args.deterministic = is_deterministic(args.deterministic, devices)
    ranks = _join(name, world) if in_ranks else None
    if ranks:
        _refuse_different_flags(ranks.gather(vars(args)))
    if name == "auto":
        name = "mirrored" if len(devices) > 1 else "single"
    if name == "single":
        if args.virtual_devices and args.virtual_devices > 1:
            raise InputError(
                f"--strategy single trains on one device. Received: --virtual-devices {args.virtual_devices}. "
                "Use --strategy mirrored for several."
            )
        devices = devices[:1]
    check_global_batch(args.global_batch_size, ranks.size if ranks else len(devices))

    keras.utils.set_random_seed(args.seed)
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
    if args.mixed_precision:
        keras.mixed_precision.set_global_policy(f"mixed_{args.mixed_precision}")
    return Distribution(name, devices, _mirrored(devices) if name == "mirrored" else None, ranks)


def check_global_batch(global_batch_size: int, replicas: int) -> None:
    """Refuses a global batch that the replicas cannot share evenly, because Keras would give samples unequal weights."""
    if global_batch_size % replicas:
        below = global_batch_size // replicas * replicas
        near = " or ".join(str(n) for n in (below, below + replicas) if n)
        raise InputError(
            f"The global batch must be a multiple of the number of replicas. Received: --global-batch-size {global_batch_size} for "
            f"{replicas} replicas. Use {near}."
        )


def _world():
    try:
        return read_world()
    except ValueError as error:
        raise InputError(f"The rank cannot be read from the environment. {error}") from None


def _strategy(args, world):
    """Returns the strategy. For several ranks, replaces `auto` by an engine."""
    name = args.strategy
    if name == "auto" and world.world_size > 1:
        name = "horovod" if importlib.util.find_spec("horovod") else "multiworker"
    if world.world_size > 1 and name not in ENGINES:
        raise InputError(
            f"--strategy {name} trains in one process, and this is one of {world.world_size} ranks. Use --strategy multiworker or "
            "horovod, or start it without a launcher."
        )
    if name in ENGINES and args.virtual_devices:
        raise InputError(
            f"--virtual-devices creates replicas in one process, but with --strategy {name} each process is one replica. "
            f"Leave the flag out, and start {args.virtual_devices} ranks."
        )
    return name


def _join(name, world):
    """Joins the other ranks."""
    ranks = ENGINES[name]()
    if (ranks.rank, ranks.size) != (world.rank, world.world_size):  # torchrun, for example, does not set the variables of an engine
        raise InputError(
            f"This is rank {world.rank} of {world.world_size}, but --strategy {name} has rank {ranks.rank} of {ranks.size}. "
            "Start the ranks with python -m launch."
        )
    install(ranks)
    return ranks


def _horovod():
    try:
        from recipes.common.distribution.horovod_ranks import HorovodRanks
    except ImportError as error:
        raise InputError(f"--strategy horovod needs Horovod, which cannot be imported: {error}. Run: make horovod") from None
    return HorovodRanks()


def _multiworker():
    from recipes.common.distribution.multiworker_ranks import MultiWorkerRanks

    return MultiWorkerRanks()


ENGINES: dict[str, Callable[[], EngineRanks]] = {"horovod": _horovod, "multiworker": _multiworker}  # for several processes


def _refuse_different_flags(gathered):
    """Refuses flags that differ between ranks. Another seed on one rank, for example, would silently change its data order."""
    for rank, flags in enumerate(gathered):
        for name, value in flags.items():
            if value != gathered[0][name]:
                raise InputError(
                    "All ranks must have the same flags. "
                    f"Received: --{name.replace('_', '-')} {value} on rank {rank}, {gathered[0][name]} on the chief."
                )


def _devices(virtual_devices: int | None, world: World | None) -> tuple[str, ...]:
    """Returns the devices of this process: one if it is a rank of a world, otherwise all."""
    gpus = tf.config.list_physical_devices("GPU")
    if warning := unseen_gpus(os.environ, len(gpus)):
        warnings.warn(warning, stacklevel=2)
    if virtual_devices and gpus:
        raise InputError(
            f"--virtual-devices splits the CPU, and this machine has GPUs ({len(gpus)}). "
            "Leave the flag out, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1."
        )
    if world and gpus:
        if world.local_rank == 0 and (warning := idle_gpus(len(gpus), world.local_world_size)):
            warnings.warn(warning, stacklevel=2)
        gpus = [gpus[world.device(len(gpus))]]
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # leaves memory to other processes
    if gpus:
        give_own_threads(os.environ)  # before the first operation, at which TensorFlow creates its devices
        return tuple(f"/gpu:{i}" for i in range(len(gpus)))
    count = virtual_devices or 1
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return tuple(f"/cpu:{i}" for i in range(count))


def _mirrored(devices):
    # The default collectives on CPUs fail in a while loop (steps_per_execution), and with two models in a process.
    on_cpu = devices[0].startswith("/cpu")
    return tf.distribute.MirroredStrategy(list(devices), cross_device_ops=tf.distribute.ReductionToOneDevice() if on_cpu else None)
