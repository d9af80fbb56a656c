"""Loads two archives of ResNet-50 with stock Keras, and compares their variables bit for bit.

python tests/programs/compare_archives.py ARCHIVE ARCHIVE
"""

import sys
import warnings

import keras
import numpy as np


def main(*archives):
    warnings.simplefilter("error")
    one, other = (keras.models.load_model(path) for path in archives)
    assert not any(name.split(".")[0] in ("callbacks", "recipes") for name in sys.modules)
    for a, b in zip(one.variables + one.optimizer.variables, other.variables + other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    assert one.optimizer.iterations.numpy() == 12 and one.optimizer.nesterov
    assert one.predict(np.zeros((1, 32, 32, 3), "uint8"), verbose=0).dtype == np.float32
    assert len(one.losses) == sum(v.name == "kernel" for v in one.trainable_variables)


if __name__ == "__main__":
    main(*sys.argv[1:])
