"""Runs a measurement in its own process, so that it does not inherit threads, memory or libraries."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a new process without stderr. Returns its result, or raises its exception."""
    with silent_children(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def silent_children() -> Iterator[None]:
    """Starts processes without stderr: messages of TensorFlow at import and of Orbax at each save would break up the tables."""
    terminal = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
