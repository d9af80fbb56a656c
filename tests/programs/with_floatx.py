"""Runs a recipe with another float type, such as float64, in which the order of sums hardly matters.

python -m tests.programs.with_floatx FLOATX MODULE FLAGS...
"""

import importlib
import sys

import keras

if __name__ == "__main__":
    floatx, module, *flags = sys.argv[1:]
    keras.config.set_floatx(floatx)
    importlib.import_module(module).main(flags)
