"""Trains on a GPU twice: with saves in the background, in the folder `True`, and with saves at once, in `False`.

python tests/programs/saves_on_gpu.py DIRECTORY XLA
"""

import sys

import keras
import tensorflow as tf
from small import arrays

from callbacks import GlobalStepCheckpoint


def main(directory, xla):
    assert tf.config.list_physical_devices("GPU")
    if not xla:
        tf.config.experimental.enable_op_determinism()
    for background in (True, False):
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense
        model = keras.Sequential([keras.Input((6,)), dense(4096), dense(4096), dense(1)])
        model.compile("adam", "mse")
        assert model.jit_compile is xla  # as Keras chooses on a GPU
        checkpoint = GlobalStepCheckpoint(f"{directory}/{background}/b{{batch}}.weights.h5", save_freq=5, background=background)
        model.fit(*arrays(40), batch_size=4, verbose=0, callbacks=[checkpoint])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "True")
