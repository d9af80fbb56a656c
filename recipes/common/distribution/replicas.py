"""The replicas of a run. Other code does not know which engine runs."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from callbacks import InputError, start_up
from recipes.common.distribution.heartbeat import Heartbeat
from recipes.common.distribution.rank_synchronization import RankSynchronization, is_synchronized, reduce_over_ranks
from recipes.common.distribution.replica_all_reduce import dense_gradients, reduce_over_replicas

if TYPE_CHECKING:
    from recipes.common.distribution.engine_ranks import EngineRanks


@dataclass(frozen=True)
class Distribution:
    """The replicas of a run, and how to train on them.

    Args:
        name: `single`, `mirrored`, `horovod` or `multiworker`.
        devices: TensorFlow's name of the device of each replica in this process.
        strategy: the strategy for several replicas in this process; None for one replica.
        ranks: the processes, with one replica each; None for one process.
    """

    name: str
    devices: tuple[str, ...]
    strategy: tf.distribute.Strategy | None = None
    ranks: "EngineRanks | None" = None

    @property
    def replicas(self) -> int:
        """The number of devices that share a global batch."""
        return self.ranks.size if self.ranks else len(self.devices)

    @property
    def hardware(self) -> str:
        """The devices of this process for a message, with the model of each GPU."""
        gpus = enumerate(tf.config.get_visible_devices("GPU"))
        models = {f"/gpu:{i}": tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for i, gpu in gpus}
        return ", ".join(f"{device} ({models[device]})" if device in models else device for device in self.devices)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.ranks is None or self.ranks.is_chief

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """The scope under which to create model and optimizer."""
        start_up.end_phase("data")
        with self.strategy.scope() if self.strategy else contextlib.nullcontext():
            yield
        start_up.end_phase("build")

    def optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Makes an optimizer reduce gradients over the global batch before clipping and accumulation. Returns it."""
        if self.ranks:
            return reduce_over_ranks(optimizer, self.ranks)
        return reduce_over_replicas(optimizer, self.strategy) if self.strategy else dense_gradients(optimizer)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Returns the first callbacks of every rank. They synchronize the ranks and report progress to the launcher."""
        return [*([RankSynchronization(self.ranks)] if self.ranks else []), Heartbeat()]

    def check_callbacks(self, model: keras.Model) -> None:
        """Checks that the callbacks of the running `fit` synchronize the ranks.

        Raises:
            InputError: if they do not.
        """
        if self.ranks and not is_synchronized(model):
            raise InputError(
                "The callbacks that synchronize the ranks are missing, so the ranks would silently diverge. Begin the list of "
                "callbacks of fit with *distribution.callbacks(), on every rank."
            )

    def dataset(self, shares: Callable[[int, int], tf.data.Dataset]) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """Distributes a dataset over the replicas.

        Args:
            shares: `shares(first, count)` returns a dataset with the shares of replicas `first` to `first + count - 1` in each
                global batch, one after the other.
        """
        if self.strategy is None:
            return shares(self.ranks.rank if self.ranks else 0, 1)
        return self.strategy.distribute_datasets_from_function(lambda _: shares(0, self.replicas))
