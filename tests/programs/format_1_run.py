"""The training whose checkpoints of format 1 are in `tests/data/format_1`; its README tells how they were made.

python tests/programs/format_1_run.py DIRECTORY
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepCheckpoint

BATCHES, BATCH = 4, 4  # batches of an epoch, samples of a batch
STOPS_AFTER = 5  # epochs: EarlyStopping has waited for four of them


def build():
    """A model with seeds, statistics of the batches, and an optimizer with state."""
    layers = keras.layers
    first = layers.Dense(4, use_bias=False)  # before a BatchNormalization a bias has no gradient but rounding errors
    model = keras.Sequential([keras.Input((3,)), first, layers.BatchNormalization(), layers.Dropout(0.3, seed=1), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse", metrics=["mae"])
    return model


def train(model, checkpoint, epochs, **options):
    """Trains as far as `epochs`; since no improvement is large enough, the learning rate falls and the fifth epoch is the last."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(BATCHES * BATCH, 3)).astype("float32"), random.normal(size=(BATCHES * BATCH, 1)).astype("float32")
    never = {"monitor": "loss", "min_delta": 100.0}
    stopping = keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True, **never)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, **never)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return model.fit(data, epochs=epochs, verbose=0, callbacks=[stopping, plateau, checkpoint], **options)


def main(directory):
    """Saves after batch 10, in the middle of the third epoch, and after batch 12, at its end."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.experimental.enable_op_determinism()
    one = tf.distribute.get_strategy()
    two = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    for name, strategy in (("b{batch}.weights.h5", one), ("b{batch}.keras", one), ("two_replicas_{batch}.weights.h5", two)):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = build()
        train(model, GlobalStepCheckpoint(f"{directory}/{name}", save_freq=10), epochs=3)


if __name__ == "__main__":
    main(sys.argv[1])
