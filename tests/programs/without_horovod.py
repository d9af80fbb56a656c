"""Runs the recipe without Horovod.

python tests/programs/without_horovod.py FLAGS...
"""

import importlib.util
import sys

find_spec = importlib.util.find_spec


def find_other_spec(name, package=None):
    return None if name == "horovod" else find_spec(name, package)


if __name__ == "__main__":
    importlib.util.find_spec = find_other_spec
    sys.modules["horovod"] = None  # type: ignore[assignment]
    from recipes.common.run import run
    from recipes.mnist import main

    run(lambda: main(sys.argv[1:]))
