"""An HDF5 file whose large values HDF5 never touches.

HDF5 writes groups, names and small values into memory, and gives each large value a place in the file. Then everything goes
out in the order of the file: from that memory, and straight from the arrays. So no error of a disk passes through HDF5, which
loses some of them, and no value is copied on the way.
"""

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np

_LARGE = 1 << 16  # bytes


class Hdf5File:
    """The content of an HDF5 file, to be filled and then written.

    Example:

    >>> file = Hdf5File()
    >>> group = file.group("layers/dense/vars", {"name": "dense"})
    >>> file.put(group, "0", np.ones([1024, 1024], "float32"))
    >>> file.write(output.write)
    """

    def __init__(self) -> None:
        self._image = _SparseImage()
        self._file = h5py.File(self._image, "w")
        self._large: list[tuple[int, np.ndarray]] = []
        self._placed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._placed.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._placed.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

    def group(self, path: str, attributes: Mapping[str, str] = {}) -> h5py.Group:
        """Makes a group."""
        group = self._file.create_group(path)
        for name, value in attributes.items():
            group.attrs[name] = value
        return group

    def put(self, group: h5py.Group, name: str, value: Any) -> None:
        """Makes a dataset; a large array has to stay as it is until `write`.

        A bfloat16 array is stored as Keras does it, with an attribute that tells its type.
        """
        if isinstance(value, np.ndarray) and value.nbytes >= _LARGE and value.dtype.kind in "biufV" and value.flags.c_contiguous:
            kind = h5py.h5t.py_create(value.dtype, logical=True)
            space = h5py.h5s.create_simple(value.shape)
            dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=self._placed))
            self._large.append((dataset.id.get_offset(), value))
        else:
            dataset = group.create_dataset(name, data=value)
        if getattr(value, "dtype", None) is not None and value.dtype.name == "bfloat16":
            dataset.attrs["dtype"] = "bfloat16"

    def write(self, write: Callable[[Any], Any]) -> None:
        """Gives the whole content to a function, piece by piece, in the order of the file."""
        self._file.close()
        position = 0
        for offset, array in sorted(self._large, key=lambda each: each[0]):
            self._image.copy(position, offset, write)
            write(array.reshape(-1).view("uint8").data)
            position = offset + array.nbytes
        self._image.copy(position, self._image.size, write)


class _SparseImage(io.RawIOBase):
    """What HDF5 takes for a file: memory for the pages that it writes to, zeros elsewhere."""

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
        """Gives a part of the content to a function."""
        self.seek(begin)
        while self._position < end:
            write(self.read(min(end - self._position, self._PAGE)))

    def _parts(self, size):
        """Of so many bytes at the position: the place within them, the page, the place in the page, and how many."""
        within = 0
        while within < size:
            page, begin = divmod(self._position + within, self._PAGE)
            count = min(self._PAGE - begin, size - within)
            yield within, page, begin, count
            within += count
