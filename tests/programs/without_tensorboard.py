"""Runs the recipe without TensorBoard.

python tests/programs/without_tensorboard.py FLAGS...
"""

import importlib.abc
import importlib.util
import sys


class Absent(importlib.abc.MetaPathFinder):
    """Finds no part of TensorBoard."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError(name)


find_spec = importlib.util.find_spec


def find_other_spec(name, package=None):
    return None if name == "tensorboard" else find_spec(name, package)


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    importlib.util.find_spec = find_other_spec
    from recipes.common.run import run
    from recipes.mnist import main

    run(lambda: main(sys.argv[1:]))
