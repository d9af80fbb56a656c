"""Random numbers that XLA draws as TensorFlow's kernels do."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes.common.distribution.xla_random import numbers_of_kernels

SEED = tf.constant([3, 5])


def compiled(draw):
    return tf.function(numbers_of_kernels()(draw), jit_compile=True)


@pytest.mark.parametrize("dtype, mantissa", [("float16", 10), ("bfloat16", 7), ("float32", 23), ("float64", 52)])
def test_xla_draws_the_numbers_of_the_kernels(dtype, mantissa):
    def draw():
        uniform, normal = (
            functools.partial(each, dtype=dtype) for each in (tf.random.stateless_uniform, tf.random.stateless_normal)
        )
        dropped = tf.nn.experimental.stateless_dropout(tf.ones([9, 5], dtype), 0.3, SEED, noise_shape=[9, 1])
        return uniform([7, 301], SEED), dropped, uniform([], SEED, -2, 3), normal([3, 5], SEED), normal([8], SEED, 2, 3)

    (uniform, dropped, *rounded), (by_kernel, dropped_by_kernel, *rounded_by_kernel) = compiled(draw)(), draw()
    np.testing.assert_array_equal(uniform, by_kernel)
    np.testing.assert_array_equal(dropped, dropped_by_kernel)
    for found, expected in zip(rounded, rounded_by_kernel, strict=True):
        precision = 32 * 2.0**-mantissa
        np.testing.assert_allclose(tf.cast(found, "float64"), tf.cast(expected, "float64"), rtol=precision, atol=precision)


def test_integers_are_those_of_the_kernels():
    def draw():
        return tf.random.stateless_uniform([99], SEED, -5, 1000, "int32"), tf.random.stateless_uniform(
            [9], SEED, None, None, "uint64"
        )

    for found, expected in zip(compiled(draw)(), draw(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(keras.layers.Dropout, 0.4),
        functools.partial(keras.layers.SpatialDropout1D, 0.4),
        functools.partial(keras.layers.AlphaDropout, 0.4),
        functools.partial(keras.layers.GaussianDropout, 0.4),
        functools.partial(keras.layers.GaussianNoise, 0.4),
        functools.partial(keras.layers.LSTM, 4, dropout=0.4, recurrent_dropout=0.4),
    ],
    ids=lambda make: make.func.__name__,
)
def test_a_layer_of_keras_draws_them(make):
    x = tf.ones([3, 5, 6])
    layer, same = make(seed=1), make(seed=1)
    layer.build(x.shape), same.build(x.shape)
    same.set_weights(layer.get_weights())
    step = compiled(lambda: layer(x, training=True))
    for _ in range(2):
        expected = same(x, training=True)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(step(), expected, rtol=1e-5, atol=1e-6)


def test_tensorflow_has_its_functions_back():
    def functions():
        return tf.random.stateless_uniform, tf.random.stateless_normal, tf.nn.experimental.stateless_dropout

    before = functions()
    with pytest.raises(ZeroDivisionError), numbers_of_kernels():
        assert not set(before) & set(functions())
        raise ZeroDivisionError
    assert functions() == before
