"""From arrays in memory to what `fit` reads: global batches in a seekable order, shared evenly by the replicas."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters.data_adapter import DataAdapter  # `fit` takes its subclasses; it has no public name

from callbacks import InputError, counters_of
from recipes.common.distribution import Distribution
from recipes.common.order import shuffled

_FETCHED_TOGETHER = 512  # samples; a call of a dataset's function costs as much as gathering a few hundred small ones


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    Args:
        x: `[samples, ...]`, of the model's input type.
        y: `[samples]`, int64 class numbers.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self):
        return len(self.x)


class EpochData(DataAdapter):
    """What `fit` asks for an epoch of batches: a dataset, and how many batches it is meant to have.

    A plain `tf.data.Dataset` that starts in the middle of an epoch would make Keras take the short epoch for the length of all.
    """

    def __init__(self, dataset: Any, num_batches: int, before_epoch: Callable[[], None] | None = None):
        self._dataset = dataset
        self._num_batches = num_batches
        self._before_epoch = before_epoch

    def get_tf_dataset(self):
        return self._dataset

    def on_epoch_begin(self):
        if self._before_epoch:
            self._before_epoch()

    @property
    def num_batches(self):
        return self._num_batches

    @property
    def batch_size(self):
        return None

    @property
    def has_partial_batch(self):
        return None

    @property
    def partial_batch_size(self):
        return None


def training_data(
    arrays: Arrays, model: keras.Model, distribution: Distribution, *, global_batch_size: int, seed: int
) -> EpochData:
    """Shuffled global batches; an epoch starts where the model's counters stand, and drops its last partial batch.

    Args:
        arrays: the samples.
        model: the model that is trained; its counters say where an epoch begins after a resume.
        distribution: the replicas; each gets `global_batch_size / replicas` samples of a batch, the first replica the first.
        global_batch_size: samples of one update.
        seed: of the order.

    Returns:
        For `fit(x=...)`: batches `(x, y)` with x `[share, ...]`, y `[share]` on each replica.

    Raises:
        InputError: if there are too few samples for one batch.
    """
    size, share = len(arrays), global_batch_size // distribution.replicas
    batches = size // global_batch_size
    if not batches:
        raise InputError(f"An epoch needs at least one global batch, of {global_batch_size}. Received: {size} samples.")
    with tf.device("/cpu:0"):
        start = tf.Variable(tf.zeros([], tf.int64), trainable=False, name="batch_to_start_at")  # counted over all epochs
        x, y = tf.constant(arrays.x), tf.constant(arrays.y)

    def shares(first, count):
        at_once = max(1, _FETCHED_TOGETHER // share)  # shares

        def fetch(place):
            epoch, in_epoch = place // (batches * count), place % (batches * count)
            places = tf.range(in_epoch, tf.minimum(in_epoch + at_once, batches * count))
            begins = places // count * global_batch_size + (first + places % count) * share
            index = tf.reshape(begins[:, tf.newaxis] + tf.range(share, dtype=tf.int64), [-1])
            chosen = shuffled(index, seed=seed, epoch=epoch, size=size)
            return tuple(tf.reshape(tf.gather(part, chosen), [-1, share, *part.shape[1:]]) for part in (x, y))

        def epoch_from_start(_):
            end = (start // batches + 1) * batches
            return tf.data.Dataset.range(start * count, end * count, at_once)

        # The variable is read when an iterator is made, so one dataset serves every epoch.
        return (
            tf.data.Dataset.range(1)
            .flat_map(epoch_from_start)
            .map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .unbatch()
            .prefetch(tf.data.AUTOTUNE)
        )

    def seek():
        epoch, samples_done = counters_of(model).position()
        if samples_done % global_batch_size:
            raise InputError(
                f"The checkpoint stands at sample {samples_done} of its epoch, between two global batches of "
                f"{global_batch_size}. Go on with the --global-batch-size that it was made with."
            )
        start.assign(epoch * batches + samples_done // global_batch_size)

    return EpochData(distribution.dataset(shares), batches, before_epoch=seek)


def validation_data(arrays: Arrays, distribution: Distribution, *, global_batch_size: int) -> EpochData:
    """Every sample exactly once, whatever their number, in shares that differ by one sample at most.

    Keras weights each replica's share by its size, so unequal shares are exact, with two limits that shape this: an empty
    share gives NaN, and the shares of the first batch have to be equal. A set too small for that, of less than two samples
    for each replica, is evaluated by every replica in full, which gives the same means.

    Args:
        arrays: the samples.
        distribution: the replicas.
        global_batch_size: the size that batches come near to (up to twice as much for sets of a few samples per replica).

    Returns:
        For `fit(validation_data=...)` and `evaluate`: batches `(x, y)`.
    """
    size, replicas = len(arrays), distribution.replicas
    sizes = share_sizes(size, replicas, global_batch_size)
    batches = len(sizes)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    begins, ends = (np.broadcast_to(bounds, (batches, replicas)) for bounds in (ends - sizes, ends))
    with tf.device("/cpu:0"):
        x, y, begins, ends = tf.constant(arrays.x), tf.constant(arrays.y), tf.constant(begins), tf.constant(ends)

    def shares(first, count):
        def fetch(place):
            at = (place // count, first + place % count)
            return x[begins[at] : ends[at]], y[begins[at] : ends[at]]

        places = tf.data.Dataset.range(batches * count)
        return places.map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    return EpochData(distribution.dataset(shares), batches)


def share_sizes(size: int, replicas: int, global_batch_size: int) -> np.ndarray:
    """How many samples each replica validates on in each batch.

    Returns:
        `[batches, replicas]`: all above zero, the first row of equal numbers, `size` in all. Or `[batches, 1]`, where that
        is not possible: then every replica takes the whole batch.
    """
    if size % replicas and size < 2 * replicas:
        return np.array([[size]])
    batches = min(-(-size // global_batch_size), size // replicas)
    if size % replicas:
        batches = max(batches, 2)
    share, extra = divmod(size, batches * replicas)
    sizes = np.full(batches * replicas, share)
    if extra >= replicas:
        sizes[:replicas] += 1
        extra -= replicas
    if extra:
        sizes[-extra:] += 1
    return sizes.reshape(batches, replicas)
