"""Trains a recipe in ranks; rank 1 applies its own gradients.

python tests/programs/skips_all_reduce.py FLAGS...
"""

import os
import sys

from recipes._start import start

start()  # as `python -m recipes.mnist` does before it imports TensorFlow

from recipes import mnist
from recipes.common.distribution import replicas
from recipes.common.run import run

reduce_over_ranks = replicas.reduce_over_ranks


def broken(optimizer, ranks):
    plain = optimizer.apply
    reduce_over_ranks(optimizer, ranks)
    optimizer.apply = plain
    return optimizer


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        replicas.reduce_over_ranks = broken
    run(lambda: mnist.main(sys.argv[1:]))
