"""Runs a recipe with a small network of the same layers, because building and tracing a large one takes most of a short run.

python -m tests.programs.small_networks MODULE FLAGS...

ResNet-50 has one block in each stage with a sixteenth of the filters, and a transformer of any size has one narrow block.
"""

import dataclasses
import importlib
import sys

if __name__ == "__main__":
    from recipes._start import start

    start()  # as `python -m recipes.NAME` does before it imports TensorFlow

from keras.src.applications import resnet

from recipes import transformer_lm
from recipes.common.run import run

_stack = resnet.stack_residual_blocks_v1


def one_block(x, filters, blocks, **options):
    """Replaces the function of Keras that builds a stage of ResNet-50."""
    return _stack(x, filters // 16, 1, **options)


def main(argv):
    module, *flags = argv
    resnet.stack_residual_blocks_v1 = one_block
    for name, size in transformer_lm.SIZES.items():
        transformer_lm.SIZES[name] = dataclasses.replace(size, blocks=1, heads=2, width=16)
    importlib.import_module(module).main(flags)


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
