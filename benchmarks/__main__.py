"""Runs every benchmark, after a line that says on what."""

import os
import platform

import keras
import tensorflow as tf

from benchmarks import data_order


def main() -> None:
    """Prints one table for each benchmark."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", end=", ")
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}\n")
    data_order.main()


if __name__ == "__main__":
    main()
