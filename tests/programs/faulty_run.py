"""What the campaign of faults kills: a training whose saves, of 12 MB each after every second batch, take most of its time.

python tests/faulty_run.py DIRECTORY EPOCHS
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepCheckpoint, counters_of

BATCHES, BATCH = 12, 8
TEMPLATE = "b{batch:05d}.weights.h5"


def build():
    """An embedding of 8 MB with Adam, beside layers with statistics and seeds."""
    layers = keras.layers
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


def main(directory, epochs):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    random = np.random.default_rng(0)
    x, y = random.integers(0, 16_000, (BATCHES * BATCH, 6)), random.normal(size=(BATCHES * BATCH, 1))
    model = build()
    checkpoint = GlobalStepCheckpoint(f"{directory}/{TEMPLATE}", save_freq=2, keep_last=3, keep_every=100, resume=True)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    model.fit(data, epochs=epochs, validation_data=data, verbose=0, callbacks=[checkpoint])
    begin = checkpoint.resumed_from.batch if checkpoint.resumed_from else 0
    print(f"from {begin} to {counters_of(model).read().batch}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
