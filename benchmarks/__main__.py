"""Runs all benchmarks, or those given by name."""

import argparse
import importlib
import os
import platform
from importlib.metadata import version

from recipes._start import import_tensorflow_quietly

BENCHMARKS = (
    "data_order",
    "tfrecords",
    "checkpoint_host_time",
    "checkpoint_write",
    "checkpoint_blocked_time",
    "checkpoint_training_loop",
    "tensorboard",
    "averaging",
    "horovod_settings",
    "scaling",
    "launcher",
    "startup",
    "recipes_throughput",
    "language_model",
    "gpu",
)


def main() -> None:
    """Prints the machine and the versions, and one table for each benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run; default: all of {' '.join(BENCHMARKS)}")
    names = parser.parse_args().names
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"NAME must be one of: {' '.join(BENCHMARKS)}. Received: {name}")
    import_tensorflow_quietly()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", end=", ")
    print(f"TensorFlow {version('tensorflow')}, Keras {version('keras')}")
    for name in names or BENCHMARKS:
        print(flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
