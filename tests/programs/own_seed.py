"""Trains the recipe with another seed on each rank."""

import os

from recipes import mnist
from recipes.common.run import run

if __name__ == "__main__":
    run(lambda: mnist.main(["--seed", os.environ["RANK"]]))
