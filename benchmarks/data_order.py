"""The seekable order against `shuffle().batch().prefetch()` on the same arrays: batches per second."""

import time

import keras
import numpy as np
import tensorflow as tf

from recipes.common.data import Arrays, training_data
from recipes.common.distribution import Distribution

ROUNDS = 5
BATCHES = 4000
CASES = [((8, 8, 1), 1437, 64), ((28, 28, 1), 60_000, 64), ((28, 28, 1), 60_000, 256)]  # image shape, samples, global batch


def rate(batches) -> float:
    """Batches per second of an endless iterator, once it runs."""
    next(batches)
    began = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES / (time.perf_counter() - began)


def endless(make_epoch):
    """One epoch after the other, each with an iterator of its own, as `fit` does it."""
    while True:
        yield from make_epoch()


def main() -> None:
    """Prints the median rates and their ratio."""
    print("data order                     plain/s   seekable/s   ratio")
    for shape, size, batch in CASES:
        arrays = Arrays(np.random.rand(size, *shape).astype("float32"), np.random.randint(0, 10, size))
        model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)])
        model.compile("sgd", "mse")
        single = Distribution("single", ("/cpu:0",))
        seekable = training_data(arrays, model, single, global_batch_size=batch, seed=0).get_tf_dataset()
        plain = tf.data.Dataset.from_tensor_slices((arrays.x, arrays.y)).shuffle(size).batch(batch, drop_remainder=True)
        plain = plain.prefetch(tf.data.AUTOTUNE)
        rates = np.median([(rate(endless(lambda: plain)), rate(endless(lambda: seekable))) for _ in range(ROUNDS)], axis=0)  # noqa: B023
        print(f"{size:>6} x {shape!s:<12} by {batch:<4} {rates[0]:>9.0f} {rates[1]:>12.0f} {rates[1] / rates[0]:>7.2f}")


if __name__ == "__main__":
    main()
