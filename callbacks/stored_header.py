"""The JSON part of a checkpoint's state, read without TensorFlow; `state.py` says what is in it, `header.py` checks it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import h5py

from callbacks import format_1
from callbacks.hdf5_file import WEIGHTS_MEMBER, check_file, check_link, open_hdf5, read_dataset
from callbacks.header import parse_header

FORMAT = 2
GROUP = "global_step"


def check(path: str) -> None:
    """Checks that reading a checkpoint opens no other file and makes nothing larger than the file.

    Raises:
        ValueError: if it does not hold plain arrays only.
        OSError: if it cannot be read.
    """
    check_file(path, (WEIGHTS_MEMBER, format_1.MEMBER) if path.endswith(".keras") else (WEIGHTS_MEMBER,))


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
