"""Which devices train, and how they share the work: the only place of a recipe that knows which engine runs."""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from callbacks import InputError
from callbacks.ranks import install
from launch.world import World, read_world
from recipes.common.progress import Progress
from recipes.common.summing import dense, summing
from recipes.common.synchronous import Synchronous, averaging

if TYPE_CHECKING:
    from recipes.common.horovod_ranks import HorovodRanks


@dataclass(frozen=True)
class Distribution:
    """The replicas of one run.

    Args:
        name: `single`, `mirrored` or `horovod`.
        devices: one name for each replica of this process, as TensorFlow calls them.
        strategy: what TensorFlow distributes with; None for one replica in a process.
        ranks: the processes under Horovod, of one replica each; None elsewhere.
    """

    name: str
    devices: tuple[str, ...]
    strategy: tf.distribute.Strategy | None = None
    ranks: "HorovodRanks | None" = None

    @property
    def replicas(self) -> int:
        """How many devices share a global batch."""
        return self.ranks.size if self.ranks else len(self.devices)

    @property
    def hardware(self) -> str:
        """The devices of this process for a reader, GPUs with their make."""
        gpus = enumerate(tf.config.get_visible_devices("GPU"))
        makes = {f"/gpu:{i}": tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for i, gpu in gpus}
        return ", ".join(f"{device} ({makes[device]})" if device in makes else device for device in self.devices)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.ranks is None or self.ranks.is_chief

    def scope(self) -> contextlib.AbstractContextManager:
        """The scope under which model and optimizer are made."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer as this engine needs it: with gradients of the whole global batch before clipping and accumulation."""
        if self.ranks:
            return averaging(optimizer, self.ranks)
        return summing(optimizer) if self.strategy else dense(optimizer)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs on every rank, before all other callbacks: to keep ranks equal, and to tell the launcher of progress."""
        return [*([Synchronous(self.ranks)] if self.ranks else []), Progress()]

    def dataset(self, shares: Callable[[int, int], tf.data.Dataset]) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """Spreads a dataset over the replicas.

        Args:
            shares: `shares(first, count)` gives a dataset of the shares that replicas `first` to `first + count - 1` have of
                each global batch, one after the other.
        """
        if self.strategy is None:
            return shares(self.ranks.rank if self.ranks else 0, 1)
        return self.strategy.distribute_datasets_from_function(lambda _: shares(0, self.replicas))


def get_distribution(args: argparse.Namespace) -> Distribution:
    """Sets up devices, seeds, precision and determinism as the flags say; to be called before anything else of TensorFlow.

    Args:
        args: the flags of `recipes.common.arguments`.

    Raises:
        InputError: if the flags do not fit each other, this machine, or the launcher's environment.
    """
    world = _world()
    name, ranks = args.strategy, None
    if name == "horovod" or (name == "auto" and world.world_size > 1):
        name, ranks = "horovod", _join(args, world)
    elif world.world_size > 1:
        raise InputError(
            f"--strategy {name} trains in one process, and this is one of {world.world_size} ranks. Use --strategy horovod, or "
            "start it without a launcher."
        )
    devices = _devices(args.virtual_devices, world if ranks else None)  # before the first tensor: GPUs are chosen until then
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
    if not args.no_deterministic:
        tf.config.experimental.enable_op_determinism()
    if args.mixed_precision:
        keras.mixed_precision.set_global_policy(f"mixed_{args.mixed_precision}")
    return Distribution(name, devices, _mirrored(devices) if name == "mirrored" else None, ranks)


def check_global_batch(global_batch_size: int, replicas: int) -> None:
    """Refuses a global batch that the replicas cannot share evenly: Keras would give its samples unequal weights."""
    if global_batch_size % replicas:
        below = global_batch_size // replicas * replicas
        near = " or ".join(str(n) for n in (below, below + replicas) if n)
        raise InputError(
            f"The global batch is shared evenly by all replicas. Received: --global-batch-size {global_batch_size} for "
            f"{replicas} replicas. Use {near}."
        )


def _world():
    try:
        return read_world()
    except ValueError as error:
        raise InputError(f"The environment does not say which rank this is. {error}") from None


def _join(args, world):
    if args.virtual_devices:
        raise InputError(
            "--virtual-devices makes replicas in one process; with Horovod each process is one. Leave the flag out, and start "
            f"{args.virtual_devices} ranks."
        )
    try:
        from recipes.common.horovod_ranks import HorovodRanks
    except ImportError as error:
        raise InputError(f"--strategy horovod needs Horovod, which could not be imported: {error}. Run: make horovod") from None
    ranks = HorovodRanks()
    if (ranks.rank, ranks.size) != (world.rank, world.world_size):  # torchrun, say, tells Horovod nothing
        raise InputError(
            f"This is rank {world.rank} of {world.world_size}, and Horovod was told rank {ranks.rank} of {ranks.size}. "
            "Start the ranks with python -m launch, or horovodrun."
        )
    install(ranks)
    return ranks


def _refuse_different_flags(gathered):
    """Another seed on one rank, say, would be another order of its data, and nobody would notice."""
    for rank, flags in enumerate(gathered):
        for name, value in flags.items():
            if value != gathered[0][name]:
                raise InputError(
                    "All ranks have to be started with the same flags. "
                    f"Received: --{name.replace('_', '-')} {value} on rank {rank}, {gathered[0][name]} on the chief."
                )


def _devices(virtual_devices: int | None, world: World | None) -> tuple[str, ...]:
    """The devices of this process: one where it is a rank of a world, else all."""
    gpus = tf.config.list_physical_devices("GPU")
    if virtual_devices and gpus:
        raise InputError(
            f"--virtual-devices splits the CPU, and this machine has GPUs ({len(gpus)}). "
            "Leave the flag out, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1."
        )
    if world and gpus:
        gpus = [gpus[world.device(len(gpus))]]
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # other processes may want some of the memory
    if gpus:
        return tuple(f"/gpu:{i}" for i in range(len(gpus)))
    count = virtual_devices or 1
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return tuple(f"/cpu:{i}" for i in range(count))


def _mirrored(devices):
    # The default collectives of CPU devices fail in a while loop (steps_per_execution) and with two models in a process.
    on_cpu = devices[0].startswith("/cpu")
    return tf.distribute.MirroredStrategy(list(devices), cross_device_ops=tf.distribute.ReductionToOneDevice() if on_cpu else None)
