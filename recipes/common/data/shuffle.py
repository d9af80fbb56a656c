"""Shuffles data by a pure function of (seed, epoch, index), so that seeking takes O(1)."""

import tensorflow as tf


def shuffle_index(index: tf.Tensor, *, seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the sample at each index of an epoch.

    The order is a keyed permutation (a small block cipher, `tf.random.experimental.index_shuffle`). It is computed only for the
    given indices, needs no table and no state, and does not depend on the number of replicas.

    Args:
        index: positions in the epoch, int64, a scalar or `[n]`, each in `[0, size)`.
        seed: the seed of the run.
        epoch: the epoch, from 0, int64 scalar. Each epoch has its own order.
        size: the number of samples.

    Returns:
        The samples' numbers, int64, in the shape of `index`. Over a whole epoch each number appears once.

    Example:

    >>> shuffle_index(tf.range(5, dtype=tf.int64), seed=0, epoch=tf.constant(0, tf.int64), size=5).numpy()
    array([0, 2, 1, 3, 4])

    Source: Simon and Speck, Beaulieu et al. 2013, https://eprint.iacr.org/2013/404, which TensorFlow's op is built on.
    """
    key = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(index, key, tf.constant(size - 1, tf.int64))
