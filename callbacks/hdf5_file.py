"""Opens the HDF5 part of a checkpoint for reading, without TensorFlow."""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import h5py
import numpy as np

from callbacks import plain_data
from callbacks.archive import place_of
from callbacks.plain_hdf5 import check_dataset, check_plain
from callbacks.regular_file import open_regular

WEIGHTS_MEMBER = "model.weights.h5"  # of an archive


@contextlib.contextmanager
def open_hdf5(path: str, member: str = WEIGHTS_MEMBER) -> Iterator[h5py.File]:
    """Opens a checkpoint's HDF5 part for reading, on file systems without locks too.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        member: the name of the HDF5 part in an archive.
    """
    with open_part(path, member) as content, h5py.File(content, "r") as file:
        yield file


def check_file(path: str, members: Iterable[str]) -> None:
    """Checks that the HDF5 part of a checkpoint contains plain arrays, and refers to no other file.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        members: the members of an archive to check; a missing one is skipped.

    Raises:
        ValueError: if it contains anything else.
        OSError: if it cannot be read.
    """
    for member in members:
        with contextlib.suppress(KeyError), open_part(path, member) as content, h5py.File(content, "r") as file:
            check_plain(file, content.size)


def check_link(group: h5py.Group, name: str) -> None:
    """Checks that a name in a group belongs to an object of the same file.

    Raises:
        ValueError: if it is a link.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")


def read_dataset(group: h5py.Group, name: str) -> np.ndarray:
    """Reads an array from a plain dataset of this file.

    Raises:
        KeyError: if there is no dataset of that name.
        ValueError: if it is a link, or its data is outside the file.
    """
    dataset = plain_dataset(group, name)
    if dataset.attrs.get("dtype") is None:
        return dataset[()]
    return dataset[()].view(plain_data.dtype_named(dataset.attrs["dtype"]))  # HDF5 lacks bfloat16, for example


def plain_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Returns a dataset whose data is in this file.

    Raises:
        KeyError: if there is no dataset of that name.
        ValueError: if it is a link, or its data is outside the file.
    """
    if name not in group:
        raise KeyError(name)
    check_link(group, name)
    dataset = h5py.h5d.open(group.id, name.encode())
    try:
        check_dataset(dataset, group.file.id.get_filesize())
    except ValueError as error:
        raise ValueError(f"{group.name}/{name} {error}") from None
    return h5py.Dataset(dataset)


class Part(io.RawIOBase):
    """A file-like object for a part of a file."""

    def __init__(self, file: BinaryIO, begin: int, size: int):
        self._descriptor, self._begin, self.size = file.fileno(), begin, size
        self._at = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        wanted = memoryview(buffer)[: max(self.size - self._at, 0)]
        count = os.preadv(self._descriptor, [wanted], self._begin + self._at)
        self._at += count
        return count


@contextlib.contextmanager
def open_part(path: str, member: str) -> Iterator[Part]:
    """Opens a file, or a member of a `.keras` archive in its place there."""
    with open_regular(path) as file:
        if path.endswith(".keras"):
            yield Part(file, *place_of(file, member))
        else:
            yield Part(file, 0, os.fstat(file.fileno()).st_size)
