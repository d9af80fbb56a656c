"""Imports the callbacks under other version numbers of TensorFlow and Keras.

python tests/programs/import_under_versions.py TENSORFLOW KERAS
"""

import sys

import keras
import tensorflow

if __name__ == "__main__":
    tensorflow.__version__, keras.__version__ = sys.argv[1:]
    from callbacks import GlobalStepCheckpoint  # noqa: F401
