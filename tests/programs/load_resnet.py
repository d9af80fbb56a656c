"""Loads an archive of ResNet-50 after two batches with stock Keras, and checks it.

python tests/programs/load_resnet.py ARCHIVE
"""

import sys
import warnings

import keras
import numpy as np


def main(archive):
    warnings.simplefilter("error")
    model = keras.models.load_model(archive)
    assert not any(name.split(".")[0] in ("callbacks", "recipes") for name in sys.modules)
    assert model.optimizer.iterations.numpy() == 2 and model.optimizer.nesterov
    assert any(np.any(v.numpy()) for v in model.optimizer.variables[2:])
    assert model.predict(np.zeros((1, 32, 32, 3), "uint8"), verbose=0).dtype == np.float32
    assert len(model.losses) == sum(v.name == "kernel" for v in model.trainable_variables)


if __name__ == "__main__":
    main(*sys.argv[1:])
