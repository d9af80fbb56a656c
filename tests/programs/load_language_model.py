"""Loads a language model with stock Keras, saves its predictions, and continues its training.

python tests/programs/load_language_model.py ARCHIVE PREDICTIONS
"""

import sys
import warnings

import keras
import numpy as np


def main(archive, predictions):
    warnings.simplefilter("error")
    model = keras.models.load_model(archive)
    assert not {"callbacks", "recipes"} & set(sys.modules)
    tokens = np.arange(4)[np.newaxis]
    np.save(predictions, model.predict(tokens, verbose=0))
    model.fit(tokens, tokens, verbose=0)  # it is compiled, and has its optimizer
    assert model.optimizer.iterations.numpy() == 3


if __name__ == "__main__":
    main(*sys.argv[1:])
