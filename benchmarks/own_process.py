"""A measure in a process of its own, so that none inherits another's threads, memory or libraries."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function of a module in a new Python without its stderr, and returns or raises what it does."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=drop_remarks) as pool:
        return pool.submit(function, *arguments).result()


def drop_remarks() -> None:
    """Closes stderr: the remarks of TensorFlow at its import and of Orbax at each save would tear tables apart."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
