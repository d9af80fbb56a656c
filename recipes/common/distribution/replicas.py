"""The replicas of one run: the only place of a recipe that knows which engine runs."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from callbacks import start_up
from recipes.common.distribution.heartbeat import Heartbeat
from recipes.common.distribution.summing import dense, summing
from recipes.common.distribution.synchronous import Synchronous, averaging

if TYPE_CHECKING:
    from recipes.common.distribution.engine_ranks import EngineRanks


@dataclass(frozen=True)
class Distribution:
    """The replicas of one run, and how to train on them.

    Args:
        name: `single`, `mirrored`, `horovod` or `multiworker`.
        devices: one name for each replica of this process, as TensorFlow calls them.
        strategy: what TensorFlow distributes with; None for one replica in a process.
        ranks: the processes, of one replica each; None where there is one process.
    """

    name: str
    devices: tuple[str, ...]
    strategy: tf.distribute.Strategy | None = None
    ranks: "EngineRanks | None" = None

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

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """The scope under which model and optimizer are made."""
        start_up.end_phase("data")
        with self.strategy.scope() if self.strategy else contextlib.nullcontext():
            yield
        start_up.end_phase("build")

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer as this engine needs it: with gradients of the whole global batch before clipping and accumulation."""
        if self.ranks:
            return averaging(optimizer, self.ranks)
        return summing(optimizer, self.strategy) if self.strategy else dense(optimizer)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The first callbacks of every rank: they keep the ranks equal, and report progress to the launcher."""
        return [*([Synchronous(self.ranks)] if self.ranks else []), Heartbeat()]

    def dataset(self, shares: Callable[[int, int], tf.data.Dataset]) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """Spreads a dataset over the replicas.

        Args:
            shares: `shares(first, count)` gives a dataset of the shares that replicas `first` to `first + count - 1` have of
                each global batch, one after the other.
        """
        if self.strategy is None:
            return shares(self.ranks.rank if self.ranks else 0, 1)
        return self.strategy.distribute_datasets_from_function(lambda _: shares(0, self.replicas))
