"""Opens the HDF5 part of a checkpoint for reading, without TensorFlow. What it opens was checked (`plain_hdf5.py`)."""

import contextlib
import io
import os
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py
import numpy as np

from callbacks import plain_data
from callbacks.disk.archive import place_of
from callbacks.disk.plain_hdf5 import check_plain, place_of_array
from callbacks.disk.regular_file import open_regular

WEIGHTS_MEMBER = "model.weights.h5"  # of an archive
_BLOCK = 1 << 13  # bytes that a small read takes from the file, since structures are close to each other
_MOST_BLOCKS = 256  # in memory


@contextlib.contextmanager
def open_hdf5(path: str, member: str = WEIGHTS_MEMBER) -> Iterator[h5py.File]:
    """Opens a checkpoint's HDF5 part for reading, on file systems without locks too.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        member: the name of the HDF5 part in an archive.
    """
    with open_part(path, member) as content, hdf5_of(content) as file:
        yield file


def hdf5_of(content: "Part") -> h5py.File:
    """Opens the HDF5 file in a part.

    Raises:
        ValueError: if it contains anything but groups and plain arrays.
    """
    check_plain(content, content.size)
    try:
        return h5py.File(content, "r")
    except BaseException as error:
        # HDF5 calls the file-like object of a property list when the process exits, and crashes if that is after Python's end.
        traceback.clear_frames(error.__traceback__)
        raise


def check_objects(file: h5py.File) -> None:
    """Lets the HDF5 library open every object of a file, so that a resume will not fail at one.

    Raises:
        ValueError: if an object cannot be opened.
    """
    why = h5py.h5o.visit(file.id, lambda name, info: _obstacle(file, name, info), info=True)
    if why:  # HDF5 does not pass exceptions on
        raise ValueError(why)


def _obstacle(file, name, info):
    """Returns why an object cannot be read; None if it can."""
    try:
        if info.type == h5py.h5o.TYPE_DATASET:
            dataset = h5py.h5d.open(file.id, name)
            text = h5py.Dataset(dataset).attrs["dtype"] if h5py.h5a.exists(dataset, b"dtype") else None
            plain_data.dtype_named(text) if text is not None else dataset.dtype
    except Exception as error:
        return f"{name.decode(errors='replace')!r:.100}: {error}"
    return None


def read_array(path: str, member: str, *names: str) -> bytes:
    """Returns the bytes of one array. In a large file it takes a tenth of the time of `open_hdf5`, which checks the whole file.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        member: the name of the HDF5 part in an archive.
        names: the names of the groups, and of the array.

    Raises:
        KeyError: if there is no such array.
        ValueError: if the file is not as checkpoints are.
    """
    with open_part(path, member) as content:
        begin, size = place_of_array(content, content.size, names)
        found = bytearray(size)
        content.read_at(begin, found)
        return bytes(found)


def read_dataset(group: h5py.Group, name: str) -> np.ndarray:
    """Reads an array.

    Raises:
        KeyError: if there is no dataset of that name.
    """
    if name not in group:
        raise KeyError(name)
    dataset = h5py.Dataset(h5py.h5d.open(group.id, name.encode()))
    if dataset.attrs.get("dtype") is None:
        return dataset[()]
    return dataset[()].view(plain_data.dtype_named(dataset.attrs["dtype"]))  # HDF5 lacks bfloat16, for example


class Part(io.RawIOBase):
    """A file-like object for a part of a file.

    Args:
        file: the open file.

    Attributes:
        size: the size of the part, at first of the whole file.
        error: the first exception of a read; None if there was none.
    """

    def __init__(self, file: BinaryIO):
        self._descriptor, self._begin, self.size = file.fileno(), 0, os.fstat(file.fileno()).st_size
        self._at = 0
        self._blocks: dict[int, bytes] = {}
        self.error: BaseException | None = None

    def narrow(self, begin: int, size: int) -> None:
        """Leaves out everything before a byte, and after `size` bytes from there."""
        self._begin, self.size, self._at = begin, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if at < 0:
            raise ValueError("a place before the beginning of the file")
        self._at = at
        return at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        """Fills the buffer from the current place on, as `read_at` does."""
        done = self.read_at(self._at, buffer)
        self._at += done
        return done

    def read_at(self, begin: int, buffer: Any) -> int:
        """Fills the buffer, with zeros after the end of the part or after an error, and returns the number of bytes read.

        An exception would be raised in the middle of HDF5, which does not stop then. So `error` holds the first one. Threads may
        call this at the same time for large buffers.
        """
        whole, done = memoryview(buffer), 0
        wanted = max(min(len(whole), self.size - begin), 0)
        read = self._read if wanted >= _BLOCK else self._read_from_block
        try:
            while done < wanted and (count := read(self._begin + begin + done, whole[done:wanted])):
                done += count
        except BaseException as error:
            self.error = self.error or error
        whole[done:] = bytes(len(whole) - done)
        return done

    def _read(self, begin: int, target: memoryview) -> int:
        return os.preadv(self._descriptor, [target], begin)

    def _read_from_block(self, begin: int, target: memoryview) -> int:
        """Reads from the block at this place in the file, which is read once."""
        number, at = divmod(begin, _BLOCK)
        if number not in self._blocks:
            if len(self._blocks) == _MOST_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = self._read_block(number * _BLOCK)
        found = self._blocks[number][at : at + len(target)]
        target[: len(found)] = found
        return len(found)

    def _read_block(self, begin: int) -> bytes:
        block, done = memoryview(bytearray(_BLOCK)), 0
        while done < _BLOCK and (count := self._read(begin + done, block[done:])):
            done += count
        return bytes(block[:done])


@contextlib.contextmanager
def open_part(path: str, member: str) -> Iterator[Part]:
    """Opens a file, or a member of a `.keras` archive in its place there.

    Raises:
        OSError: the first error of a read, in place of what HDF5 and `zipfile` make of it.
        ValueError: if the archive is not one that this package writes.
    """
    with open_regular(path) as file:
        part = Part(file)
        try:
            if path.endswith(".keras"):
                part.narrow(*place_of(part, member))  # type: ignore[arg-type]  # it has what `zipfile` calls
            yield part
        finally:
            if part.error is not None:
                raise part.error from None
