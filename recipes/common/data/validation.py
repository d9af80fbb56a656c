"""Validation data: every sample exactly once, shared by the replicas."""

import numpy as np
import tensorflow as tf

from recipes.common.data.epochs import EpochData
from recipes.common.data.pipeline import CORES, map_in_order, prefetch, seeded
from recipes.common.data.sources import Prepare, Source
from recipes.common.distribution import Distribution


def validation_data(
    source: Source, distribution: Distribution, *, global_batch_size: int, prepare: Prepare | None = None
) -> EpochData:
    """Every sample exactly once, whatever their number, in shares that differ by one sample at most.

    Keras weights each replica's share by its size, so unequal shares are exact, with two limits that shape this: an empty
    share gives NaN, and the shares of the first batch have to be equal. A set too small for that, of less than two samples
    for each replica, is evaluated by every replica in full, which gives the same means.

    Args:
        source: the samples.
        distribution: the replicas.
        global_batch_size: the size that batches come near to (up to twice as much for sets of a few samples per replica).
        prepare: as in `training_data`; its seed depends on the sample alone.

    Returns:
        For `fit(validation_data=...)` and `evaluate`: batches of the parts.
    """
    size, replicas = len(source), distribution.replicas
    sizes = share_sizes(size, replicas, global_batch_size)
    batches = len(sizes)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    begins, ends = (np.broadcast_to(bounds, (batches, replicas)) for bounds in (ends - sizes, ends))
    with tf.device("/cpu:0"):
        begins, ends = tf.constant(begins, tf.int64), tf.constant(ends, tf.int64)

    def shares(first, count):
        def bounds(place):
            at = (place // count, first + place % count)
            return begins[at], ends[at]

        def fetch(place):
            return source.fetch(tf.range(*bounds(place)))

        def fetch_with_key(place):
            numbers = tf.range(*bounds(place))
            return tf.repeat(place, tf.size(numbers)), tf.zeros_like(numbers), numbers, *source.fetch(numbers)

        def size_of(place):
            begin, end = bounds(place)
            return end - begin

        dataset = tf.data.Dataset.range(batches * count)
        if prepare is None:
            dataset = map_in_order(dataset, fetch)
        else:
            prepare_one = seeded(prepare, 0)
            samples = map_in_order(dataset, fetch_with_key).unbatch()
            samples = map_in_order(samples, lambda place, *sample: (place, prepare_one(*sample)), CORES)
            dataset = samples.group_by_window(
                key_func=lambda place, _: place,
                reduce_func=lambda _, share: share.map(lambda _, sample: sample).batch(size),
                window_size_func=size_of,
            )
        return prefetch(dataset)

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
