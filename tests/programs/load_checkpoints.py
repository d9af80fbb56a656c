"""Loads checkpoints with stock Keras, without a warning, and predicts with each of them.

python tests/programs/load_checkpoints.py CHECKPOINT PREDICTIONS [CHECKPOINT PREDICTIONS ...]
"""

import sys
import warnings

import keras
import numpy as np


def build():
    """Returns the model of the checkpoints."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
    )


def load(path):
    """Loads the model at `path`."""
    if path.endswith(".keras"):
        return keras.models.load_model(path)
    model = build()
    model.load_weights(path)
    return model


def main(paths):
    warnings.simplefilter("error")
    for path, predictions in zip(paths[::2], paths[1::2], strict=True):
        model = load(path)
        np.save(predictions, model.predict(np.ones((1, 8)), verbose=0))
    assert "callbacks" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1:])
