"""Bytes on the disk with nothing done to them: what a save is compared with."""

import contextlib
import os

import numpy as np


def write_plainly(arrays: list[np.ndarray], path: str) -> None:
    """Writes arrays one after the other to a new file, and waits for the disk."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "wb", buffering=0) as file:
        for array in arrays:
            file.write(array.data)
        os.fsync(file.fileno())
