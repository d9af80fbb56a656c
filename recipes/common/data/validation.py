"""Validation data: every sample exactly once, split among the replicas."""

import numpy as np
import tensorflow as tf

from recipes.common.data.epochs import EpochData
from recipes.common.data.pipeline import CORES, map_in_order, prefetch, seeded
from recipes.common.data.sources import Prepare, Source, refuse_datasets
from recipes.common.distribution import Distribution


def validation_data(
    source: Source, distribution: Distribution, *, global_batch_size: int, prepare: Prepare | None = None
) -> EpochData:
    """Returns every sample exactly once, in shares that differ by at most one sample.

    Keras weights each replica's share by its size, so unequal shares are exact, with two limits: an empty share gives NaN, and
    the shares of the first batch must be equal. If the set is too small for that (fewer than two samples per replica), every
    replica evaluates the whole set, which gives the same means.

    Args:
        source: the samples.
        distribution: the replicas.
        global_batch_size: the approximate size of batches (up to twice as many for sets of a few samples per replica).
        prepare: as in `training_data`; its seed depends on the sample alone.

    Returns:
        For `fit(validation_data=...)` and `evaluate`: batches of the parts.
    """
    refuse_datasets(source)
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
    """Returns the number of samples per replica and batch.

    Returns:
        `[batches, replicas]`: all above zero, equal in the first row, `size` in total. `[batches, 1]` where that is impossible:
        every replica then takes the whole batch.
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
