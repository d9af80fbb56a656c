"""The JSON part of a checkpoint's state, which can be read without TensorFlow; `state.py` says what is in it."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import h5py

from callbacks import format_1
from callbacks.errors import InputError
from callbacks.hdf5_file import open_hdf5, read_dataset

FORMAT = 2
GROUP = "global_step"


def read_header(path: str) -> dict[str, Any]:
    """Returns the JSON part of a checkpoint's state.

    Raises:
        InputError: if it is of a version that this code does not know.
    """
    with open_group(path) as group:
        return header_of(group, path)


def header_of(group: h5py.Group, path: str) -> dict[str, Any]:
    """Returns the JSON part, from the open file.

    Raises:
        InputError: if it is of a version that this code does not know.
    """
    header = json.loads(read_dataset(group, "header").tobytes())
    if header["format"] not in (1, FORMAT):
        raise InputError(
            f"{path} has format {header['format']}; this version of the callbacks reads formats 1 and {FORMAT}. "
            "Read it with the version that wrote it."
        )
    return header


@contextlib.contextmanager
def open_group(path: str) -> Iterator[h5py.Group]:
    """Opens the group `global_step` of a checkpoint."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_hdf5(path))
        if GROUP not in file and path.endswith(".keras"):
            file = stack.enter_context(open_hdf5(path, format_1.MEMBER))
        yield file[GROUP]
