"""Reads the header of a checkpoint without TensorFlow. `state.py` describes the header, and `header.py` checks it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import h5py

from callbacks.disk import format_1
from callbacks.disk.hdf5_file import WEIGHTS_MEMBER, check_file, check_link, open_hdf5, read_dataset
from callbacks.disk.header import parse_header

FORMAT = 2
GROUP = "global_step"


def check(path: str) -> None:
    """Checks that reading a checkpoint opens no other file and needs no more memory than the size of the file.

    Raises:
        ValueError: if the file contains anything but plain arrays.
        OSError: if it cannot be read.
    """
    check_file(path, (WEIGHTS_MEMBER, format_1.MEMBER) if path.endswith(".keras") else (WEIGHTS_MEMBER,))


def read_header(path: str) -> dict[str, Any]:
    """Returns the header of a checkpoint.

    Raises:
        InputError: if the version of its format is unknown.
    """
    with open_group(path) as group:
        return header_of(group, path)


def header_of(group: h5py.Group, path: str) -> dict[str, Any]:
    """Returns the header in an open file.

    Raises:
        InputError: if the version of its format is unknown.
    """
    return parse_header(read_dataset(group, "header").tobytes(), path, (1, FORMAT))


@contextlib.contextmanager
def open_group(path: str) -> Iterator[h5py.Group]:
    """Opens the group `global_step` of a checkpoint."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_hdf5(path))
        if GROUP not in file and path.endswith(".keras"):
            file = stack.enter_context(open_hdf5(path, format_1.MEMBER))
        check_link(file, GROUP)
        yield file[GROUP]
