"""A training for the soak test: saves of 12 MB after every second batch take most of its time.

python tests/programs/faulty_run.py DIRECTORY EPOCHS REPLICAS [--fault TEXT_FOR_SHIM_SET] [--jump SECONDS]

With 0 replicas it trains on one device, with layers that have statistics and seeds; else under MirroredStrategy on so many, with
a model that ends with the same weights on any number, within rounding.
"""

import argparse
import ctypes
import time

from callbacks import GlobalStepCheckpoint, catch_signals, counters_of

if __name__ == "__main__":
    catch_signals()

import keras
import numpy as np
import tensorflow as tf

BATCHES, BATCH = 12, 8
TEMPLATE = "b{batch:05d}.weights.h5"


class Jump(keras.callbacks.Callback):
    """Sets the clock forward or back after the third batch."""

    def __init__(self, seconds):
        super().__init__()
        self._seconds = seconds

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2 and self._seconds:
            clock, seconds, self._seconds = time.time, self._seconds, 0
            time.time = lambda: clock() + seconds


def build(replicas=0):
    """Returns a model with an embedding of 8 MB, statistics and seeds, or a float64 model of that size without these."""
    layers = keras.layers
    if replicas:
        keras.config.set_floatx("float64")
        model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(8_000, 64), layers.Flatten(), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        return model
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(16_000, 64),
            layers.GlobalAveragePooling1D(),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("epochs", type=int)
    parser.add_argument("replicas", type=int)
    parser.add_argument("--fault", default="")
    parser.add_argument("--jump", type=int, default=0)
    args = parser.parse_args()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    random = np.random.default_rng(0)
    x, y = random.integers(0, 8_000, (BATCHES * BATCH, 6)), random.normal(size=(BATCHES * BATCH, 1))
    strategy = tf.distribute.get_strategy()
    if args.replicas:
        devices = [f"/cpu:{i}" for i in range(args.replicas)]
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        model = build(args.replicas)
    checkpoint = GlobalStepCheckpoint(f"{args.directory}/{TEMPLATE}", save_freq=2, keep_last=3, keep_every=100, resume=True)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    if args.fault:
        assert ctypes.CDLL(None).shim_set(args.fault.encode()) == 0, args.fault
    model.fit(data, epochs=args.epochs, validation_data=data, verbose=0, callbacks=[checkpoint, Jump(args.jump)])
    begin = checkpoint.resumed_from.batch if checkpoint.resumed_from else 0
    print(f"from {begin} to {counters_of(model).read().batch}")


if __name__ == "__main__":
    main()
