"""A plain write of arrays, the baseline for a save."""

import os

import numpy as np


def write_plainly(arrays: list[np.ndarray], path: str) -> None:
    """Writes arrays to a new file, calls fsync, and replaces the old file.

    The old file is deleted last, as with a checkpoint, because a deletion frees memory that makes the write cheaper.
    """
    with open(f"{path}.new", "wb", buffering=0) as file:
        for array in arrays:
            file.write(array.data)
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
