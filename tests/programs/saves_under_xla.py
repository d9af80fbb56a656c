"""Trains under XLA twice: with saves in the background, in the folder `True`, and with saves at once, in `False`.

python tests/programs/saves_under_xla.py DIRECTORY
"""

import sys

import keras
from small import arrays

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, counters_of


def main(directory):
    for background in (True, False):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(512), keras.layers.Dense(1)])  # built by its first batch, as is the optimizer
        model.compile("adam", "mse", metrics=["mae"], jit_compile=True)
        checkpoint = GlobalStepCheckpoint(f"{directory}/{background}/b{{batch}}.weights.h5", save_freq=3, background=background)
        board = GlobalStepTensorBoard(f"{directory}/{background}/events", update_freq=2, write_graph=False)
        model.fit(*arrays(), batch_size=4, verbose=0, epochs=2, callbacks=[board, checkpoint])
        assert model.jit_compile
        print(counters_of(model).read().batch, counters_of(model).read().samples)


if __name__ == "__main__":
    main(sys.argv[1])
