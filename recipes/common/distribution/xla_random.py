"""Random numbers under XLA that equal those without it, so that Dropout in a compiled training drops the same units.

From one seed, XLA and TensorFlow's kernels draw the same bits, on CPUs and GPUs: both take `auto_select` for Philox
(`DefaultRngAlgForDeviceType` in TensorFlow's rng_converter_utils.cc, `GetAlgOp` in stateless_random_ops_v2.cc). But they turn bits
into other floating-point numbers. For a mantissa, the kernels keep the low bits (`Uint32ToFloat` in random_distributions_utils.h),
and XLA the high bits (`ConvertRandomBitsToUniformFloatingPoint` in prng.cc). For normal numbers, the kernels use the method of Box
and Muller (`BoxMullerFloat`), and XLA the inverse error function. Here, operations of TensorFlow do what its kernels do.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_MANTISSAS = {tf.float16: 10, tf.bfloat16: 7, tf.float32: 23, tf.float64: 52}  # bits
_SMALLEST = 1e-7  # the argument of a logarithm, in `BoxMullerFloat` and `BoxMullerDouble`

_draw = tf.random.stateless_uniform


@contextlib.contextmanager
def numbers_of_kernels() -> Iterator[None]:
    """Makes Keras's layers draw the numbers of TensorFlow's kernels in a function that XLA compiles.

    Replaces the three public functions of TensorFlow that the layers draw with, while the function is traced. Other threads may
    call them, because the replacements return the same numbers without XLA. Truncated normal and gamma numbers remain XLA's.

    Example:
        @numbers_of_kernels()
        def train_step(data): ...
    """
    originals = tf.random.stateless_uniform, tf.random.stateless_normal, tf.nn.experimental.stateless_dropout
    _replace(_stateless_uniform, _stateless_normal, _stateless_dropout)
    try:
        yield
    finally:
        _replace(*originals)


def _replace(uniform, normal, dropout):
    tf.random.stateless_uniform = uniform
    tf.random.stateless_normal = normal
    tf.nn.experimental.stateless_dropout = dropout


def _stateless_uniform(shape, seed, minval=0, maxval=None, dtype=tf.float32, name=None, alg="auto_select"):
    dtype = tf.as_dtype(dtype)
    if dtype.is_integer:  # equal under XLA
        return _draw(shape, seed, minval, maxval, dtype, name, alg)
    low, high = tf.cast(minval, dtype), tf.cast(1 if maxval is None else maxval, dtype)
    return tf.add(_fractions(shape, seed, dtype, alg) * (high - low), low, name)


def _stateless_normal(shape, seed, mean=0.0, stddev=1.0, dtype=tf.float32, name=None, alg="auto_select"):
    shape, dtype = tf.convert_to_tensor(shape, tf.int32), tf.as_dtype(dtype)
    count = tf.reduce_prod(shape)
    computed = tf.float64 if dtype == tf.float64 else tf.float32
    fractions = tf.reshape(_fractions([count + count % 2], seed, computed, alg), [-1, 2])
    radii = tf.sqrt(-2.0 * tf.math.log(tf.maximum(fractions[:, :1], tf.constant(_SMALLEST, computed))))
    angles = 2 * math.pi * fractions[:, 1:]
    numbers = tf.reshape(radii * tf.concat([tf.sin(angles), tf.cos(angles)], axis=1), [-1])[:count]
    return tf.add(tf.cast(tf.reshape(numbers, shape), dtype) * tf.cast(stddev, dtype), tf.cast(mean, dtype), name)


def _stateless_dropout(x, rate, seed, rng_alg="auto_select", noise_shape=None, name=None):
    sampler = functools.partial(_stateless_uniform, seed=seed, alg=rng_alg)
    return tf.nn.experimental.general_dropout(x, rate, sampler, noise_shape, name)


def _fractions(shape: Any, seed: Any, dtype: tf.DType, alg: Any) -> tf.Tensor:
    """Returns uniform numbers in [0, 1)."""
    mantissa = _MANTISSAS[dtype]
    if dtype == tf.float64:
        bits = _draw(shape, seed, None, None, tf.uint64, alg=alg)
        high = tf.bitwise.left_shift(bits & (2 ** (mantissa - 32) - 1), tf.constant(32, tf.uint64))
        whole = high | tf.bitwise.right_shift(bits, tf.constant(32, tf.uint64))
    else:
        whole = _draw(shape, seed, None, None, tf.uint32, alg=alg) & (2**mantissa - 1)
    return tf.cast(whole, dtype) * 2.0**-mantissa
