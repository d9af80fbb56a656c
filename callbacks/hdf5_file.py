"""Opens the HDF5 part of a checkpoint for reading."""

import contextlib
import io
import os
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import h5py
import numpy as np

from callbacks import plain_data

WEIGHTS_MEMBER = "model.weights.h5"  # of an archive
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member: the lengths of its name and of its extra field


@contextlib.contextmanager
def open_hdf5(path: str, member: str = WEIGHTS_MEMBER) -> Iterator[h5py.File]:
    """Opens a checkpoint's HDF5 part for reading, on file systems without locks too.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        member: its name in an archive.
    """
    with open_part(path, member) as content, h5py.File(content, "r") as file:
        yield file


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
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{group.name}/{name} is a link")
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ValueError(f"{group.name}/{name} is no plain dataset")
    return dataset


class Part(io.RawIOBase):
    """A file-like object for a part of a file."""

    def __init__(self, file: BinaryIO, begin: int, size: int):
        self._descriptor, self._begin, self._size = file.fileno(), begin, size
        self._at = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        wanted = memoryview(buffer)[: max(self._size - self._at, 0)]
        count = os.preadv(self._descriptor, [wanted], self._begin + self._at)
        self._at += count
        return count


@contextlib.contextmanager
def open_part(path: str, member: str) -> Iterator[Part]:
    """Opens a file, or a member of a `.keras` archive in its place there."""
    with open(path, "rb") as file:
        if not path.endswith(".keras"):
            yield Part(file, 0, os.fstat(file.fileno()).st_size)
            return
        with zipfile.ZipFile(file) as archive:
            found = archive.getinfo(member)
        before = os.pread(file.fileno(), _LOCAL_HEADER.size, found.header_offset)
        begin = found.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(before))
        yield Part(file, begin, found.file_size)
