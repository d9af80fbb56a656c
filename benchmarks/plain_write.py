"""Bytes on the disk with nothing done to them: what a save is compared with."""

import os

import numpy as np


def write_plainly(arrays: list[np.ndarray], path: str) -> None:
    """Writes arrays one after the other to a new file, waits for the disk, and lets the new file take the place of an old one.

    The old one goes last, as with a checkpoint: memory that a deleted file has just given back would be had for less.
    """
    with open(f"{path}.new", "wb", buffering=0) as file:
        for array in arrays:
            file.write(array.data)
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
