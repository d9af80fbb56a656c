"""Runs a measurement in its own process, so that it does not inherit threads, memory or libraries."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a new process without stderr. Returns its result, or raises its exception."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=silence) as pool:
        return pool.submit(function, *arguments).result()


def silence() -> None:
    """Drops messages of TensorFlow at import and of Orbax at each save, which would break up the tables."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
