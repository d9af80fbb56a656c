"""Reads the header of a checkpoint without TensorFlow. `state.py` describes the header, and `header.py` checks it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import h5py

from callbacks.disk import format_1
from callbacks.disk.hdf5_file import WEIGHTS_MEMBER, check_objects, open_hdf5, read_array, read_dataset
from callbacks.disk.header import parse_header

FORMAT = 2
GROUP = "global_step"
_HEADER = "header"


def read_header(path: str) -> dict[str, Any]:
    """Returns the header of a checkpoint.

    Raises:
        InputError: if the version of its format is unknown.
    """
    try:
        content = read_array(path, WEIGHTS_MEMBER, GROUP, _HEADER)
    except KeyError:
        if not path.endswith(".keras"):
            raise
        content = read_array(path, format_1.MEMBER, GROUP, _HEADER)
    return parse_header(content, path, (1, FORMAT))


def header_of(group: h5py.Group, path: str) -> dict[str, Any]:
    """Returns the header in an open file.

    Raises:
        InputError: if the version of its format is unknown.
    """
    return parse_header(read_dataset(group, _HEADER).tobytes(), path, (1, FORMAT))


def read_checked_header(path: str) -> dict[str, Any]:
    """Returns the header of a checkpoint of which every part can be read.

    Raises:
        ValueError: if a part cannot be read.
        InputError: if the version of its format is unknown.
        OSError: if the disk fails.
    """
    with open_group(path) as group:
        header = header_of(group, path)
        check_objects(group.file)
        return header


@contextlib.contextmanager
def open_group(path: str) -> Iterator[h5py.Group]:
    """Opens the group `global_step` of a checkpoint."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_hdf5(path))
        if GROUP not in file and path.endswith(".keras"):
            file = stack.enter_context(open_hdf5(path, format_1.MEMBER))
        yield file[GROUP]
