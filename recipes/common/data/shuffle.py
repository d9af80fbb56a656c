"""The order of the data: a pure function of (seed, epoch, index), so that any place in it is reached at once."""

import tensorflow as tf


def shuffle_index(index: tf.Tensor, *, seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the sample at each place of an epoch.

    A keyed permutation (a small block cipher, `tf.random.experimental.index_shuffle`), computed for the places asked for
    alone: no table, no state, and nothing that depends on the number of replicas.

    Args:
        index: places in the epoch, int64, a scalar or `[n]`, each in `[0, size)`.
        seed: of the run.
        epoch: 0-based, int64 scalar; each epoch has its own order.
        size: how many samples there are.

    Returns:
        The samples' numbers, int64, of the shape of `index`: over all places each number once.

    Example:

    >>> shuffle_index(tf.range(5, dtype=tf.int64), seed=0, epoch=tf.constant(0, tf.int64), size=5).numpy()

    Source: Simon and Speck, Beaulieu et al. 2013, https://eprint.iacr.org/2013/404, which TensorFlow's op is built on.
    """
    key = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(index, key, tf.constant(size - 1, tf.int64))
