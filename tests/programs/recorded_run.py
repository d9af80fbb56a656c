"""A training with everything that this repository writes during a run, for the replay of power cuts.

python tests/programs/recorded_run.py DIRECTORY...

Trains in DIRECTORY/new/run, or resumes there, and makes the index of the TFRecord files in DIRECTORY/data. Everything is small,
and the weights at the end are the same after any interruption.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard
from recipes.common.data.tfrecord_index import read_or_make_index

EPOCHS, BATCHES, BATCH = 2, 4, 4
KEPT = 2  # checkpoints of each template
TEMPLATES = ("b{batch:02d}.weights.h5", "e{epoch}/b{batch:02d}.keras")


def main(directory):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(BATCHES * BATCH, size)).astype("float32") for size in (6, 1))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    run = f"{directory}/new/run"
    saves = [GlobalStepCheckpoint(f"{run}/{each}", verbose=1, save_freq=2, keep_last=KEPT, resume=True) for each in TEMPLATES]
    board = GlobalStepTensorBoard(f"{run}/events", update_freq=1, write_graph=False)
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[*saves, board])
    print(f"from {saves[0].resumed_from.batch if saves[0].resumed_from else 0}")
    read_or_make_index(f"{directory}/data", "train")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        main(each)
