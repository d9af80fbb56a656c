"""The seekable data order, compared with `shuffle().batch().prefetch()` on the same arrays.

Measures batches per second within an epoch, and the time to the first batch of an epoch, which matters in short epochs.
"""

import statistics
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from recipes.common.data import Arrays, training_data
from recipes.common.distribution import Distribution

ROUNDS = 7
CASES = [((8, 8, 1), 60_000, 20), ((8, 8, 1), 60_000, 64), ((28, 28, 1), 60_000, 64), ((28, 28, 1), 60_000, 256)]


def epoch(dataset: tf.data.Dataset) -> tuple[float, float]:
    """Returns batches per second after the first batch, and seconds to the first batch."""
    began = time.perf_counter()
    batches: Iterator = iter(dataset)
    next(batches)
    running = time.perf_counter()
    count = sum(1 for _ in batches)
    return count / (time.perf_counter() - running), running - began


def main() -> None:
    """Prints the medians and the ratio of the rates."""
    print("data order                       batches/s                  first batch, ms")
    print("                               plain seekable   ratio       plain seekable")
    for shape, size, batch in CASES:
        arrays = Arrays(np.random.rand(size, *shape).astype("float32"), np.random.randint(0, 10, size))
        model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)])
        model.compile("sgd", "mse")
        single = Distribution("single", ("/cpu:0",))
        seekable = training_data(arrays, model, single, global_batch_size=batch, seed=0).get_tf_dataset()
        plain = tf.data.Dataset.from_tensor_slices((arrays.x, arrays.y)).shuffle(size).batch(batch, drop_remainder=True)
        plain = plain.prefetch(tf.data.AUTOTUNE)
        rounds = [(*epoch(plain), *epoch(seekable)) for _ in range(ROUNDS)]
        rate, first, our_rate, our_first = (statistics.median(column) for column in zip(*rounds, strict=True))
        name = f"{size} x {shape} by {batch}"
        print(f"{name:<28}{rate:>8.0f}{our_rate:>9.0f}{our_rate / rate:>8.2f}{first * 1e3:>12.1f}{our_first * 1e3:>9.1f}")


if __name__ == "__main__":
    main()
