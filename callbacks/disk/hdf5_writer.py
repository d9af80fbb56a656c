"""Writes HDF5 files without passing large values through HDF5.

HDF5 writes groups, names and small values to memory, and assigns each large value an offset. `Hdf5File.write` then emits the
file in order: the metadata from memory, the values directly from their arrays. HDF5, which loses some write errors, never
touches the disk, and no value is copied.
"""

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from callbacks.disk.plain_hdf5 import check_plain

_LARGE = 1 << 16  # bytes


class Hdf5File:
    """Builds an HDF5 file in memory, then writes it.

    Example:

    >>> file = Hdf5File()
    >>> group = file.group("layers/dense/vars", {"name": "dense"})
    >>> file.put(group, "0", np.ones([1024, 1024], "float32"))
    >>> with open("dense.h5", "wb") as output:
    ...     file.write(output.write)
    """

    def __init__(self) -> None:
        self._image = _SparseImage()
        self._file = h5py.File(self._image, "w", libver="earliest", track_order=False)  # what `plain_hdf5.py` accepts
        self._large: list[tuple[int, np.ndarray]] = []
        self._placed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._placed.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._placed.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

    def group(self, path: str, attributes: Mapping[str, str] = {}) -> h5py.Group:
        """Creates a group with string attributes."""
        name = path.encode()  # h5py marks other names than ASCII as such, which needs a later version of the format
        is_new = name not in self._file  # a layer may have the name of another group
        group = self._file.create_group(name, track_order=False) if is_new else self._file[name]
        for key, value in attributes.items():
            group.attrs[key] = value
        return group

    def put(self, group: h5py.Group, name: str, value: Any) -> None:
        """Creates a dataset, in groups of its own if the name has slashes. A large array must not change until `write`.

        A bfloat16 array is stored as Keras stores it, with its dtype as an attribute.
        """
        within, _, name = name.rpartition("/")
        group = self.group(f"{group.name}/{within}") if within else group
        if getattr(value, "dtype", None) == ml_dtypes.float8_e5m2:
            value = np.asarray(value).view("V1")  # h5py refuses this type, and stores the bytes of other float8 types
        if isinstance(value, np.ndarray) and value.nbytes >= _LARGE and value.dtype.kind in "biufV" and value.flags.c_contiguous:
            kind = h5py.h5t.py_create(value.dtype, logical=True)
            space = h5py.h5s.create_simple(value.shape)
            dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=self._placed))
            self._large.append((dataset.id.get_offset(), value))
        else:
            dataset = group.create_dataset(name, data=value, track_order=False)
        if getattr(value, "dtype", None) is not None and value.dtype.name == "bfloat16":
            dataset.attrs["dtype"] = "bfloat16"

    def write(self, write: Callable[[Any], Any]) -> None:
        """Passes the content to a function, piece by piece, in file order.

        Raises:
            ValueError: before the first call, if the file has a value that no resume would read.
        """
        self._file.close()
        check_plain(self._image, self._image.size)
        position = 0
        for offset, array in sorted(self._large, key=lambda each: each[0]):
            self._image.copy(position, offset, write)
            write(array.reshape(-1).view("uint8").data)
            position = offset + array.nbytes
        self._image.copy(position, self._image.size, write)


class _SparseImage(io.RawIOBase):
    """A file-like object for HDF5 that stores only the pages written to; the rest reads as zeros."""

    _PAGE = 1 << 12

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.size = 0

    def readable(self):
        return True

    def writable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def truncate(self, size=None):
        self.size = self._position if size is None else size
        return self.size

    def readinto(self, buffer):
        target = memoryview(buffer)[: max(self.size - self._position, 0)]
        for within, page, begin, count in self._parts(len(target)):
            target[within : within + count] = self._pages.get(page, bytes(self._PAGE))[begin : begin + count]
        self._position += len(target)
        return len(target)

    def write(self, data):
        source = memoryview(data).cast("B")
        for within, page, begin, count in self._parts(len(source)):
            self._pages.setdefault(page, bytearray(self._PAGE))[begin : begin + count] = source[within : within + count]
        self._position += len(source)
        self.size = max(self.size, self._position)
        return len(source)

    def copy(self, begin: int, end: int, write: Callable[[Any], Any]) -> None:
        """Passes the bytes from `begin` to `end` to a function."""
        self.seek(begin)
        while self._position < end:
            write(self.read(min(end - self._position, self._PAGE)))

    def _parts(self, size):
        """Splits `size` bytes at the position by page: offset within them, page, offset in the page, count."""
        within = 0
        while within < size:
            page, begin = divmod(self._position + within, self._PAGE)
            count = min(self._PAGE - begin, size - within)
            yield within, page, begin, count
            within += count
