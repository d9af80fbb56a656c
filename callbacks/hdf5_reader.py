"""Reads HDF5 files directly into tensors, without copies.

h5py fills an array with zeros and then with the values, and three more copies make it a tensor. In a `.keras` archive, Keras
reads everything from the beginning up to a variable, for each variable that does not follow the one before.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import h5py
import keras
import numpy as np
import tensorflow as tf

from callbacks.archive import place_of
from callbacks.keras_private import array_view, as_store, load_state
from callbacks.plain_hdf5 import check_dataset, check_plain
from callbacks.regular_file import open_regular

WEIGHTS_MEMBER = "model.weights.h5"  # of an archive


def load_weights(model: keras.Model, path: str, skip: Iterable[Any] = ()) -> None:
    """Loads weights as `model.load_weights(path)` does, also into a model that Keras considers unbuilt.

    Args:
        model: a model whose variables exist.
        path: a verified `.weights.h5` or `.keras` file.
        skip: objects of the model that stay as they are.

    Raises:
        ValueError: if the file does not fit the model.
        OSError: if it cannot be read.
    """
    with _open_part(path, WEIGHTS_MEMBER) as content, contextlib.closing(as_store(_ReadStore)(path, content)) as store:
        errors = load_state(model, store, skip)
    if errors is None:
        kept = [(variable, variable.numpy()) for each in skip for variable in each.variables]
        model.load_weights(path)
        for variable, value in kept:
            variable.assign(value)
        return
    for name, error in errors.items():
        raise ValueError(f"{len(errors)} objects could not be loaded from {path}, first {name}: {error}")


@contextlib.contextmanager
def open_hdf5(path: str, member: str = WEIGHTS_MEMBER) -> Iterator[h5py.File]:
    """Opens a checkpoint's HDF5 part for reading, on file systems without locks too.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        member: its name in an archive.
    """
    with _open_part(path, member) as content, h5py.File(content, "r") as file:
        yield file


def check_file(path: str, members: Iterable[str]) -> None:
    """Checks that a checkpoint's HDF5 part holds plain arrays, and leads to no other file.

    Args:
        path: a `.weights.h5` or a `.keras` file.
        members: which of an archive to look at; they need not be there.

    Raises:
        ValueError: if it does not.
        OSError: if it cannot be read.
    """
    for member in members:
        with contextlib.suppress(KeyError), _open_part(path, member) as content, h5py.File(content, "r") as file:
            check_plain(file, content.size)


def check_link(group: h5py.Group, name: str) -> None:
    """Checks that a name in a group stands for an object of the same file.

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
    dataset = _dataset(group, name)
    if dataset.attrs.get("dtype") is None:
        return dataset[()]
    return dataset[()].view(tf.as_dtype(dataset.attrs["dtype"]).as_numpy_dtype)  # HDF5 lacks bfloat16, for example


def _group(file: h5py.File, path: str) -> h5py.Group | dict:
    """Returns a group of this file; an empty dict if there is none."""
    group = file
    for name in path.split("/"):
        link = group.get(name, getlink=True)
        if link is None:
            return {}
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{group.name}/{name} is a link")
        group = group[name]
    return group


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    if name not in group:
        raise KeyError(name)
    check_link(group, name)
    dataset = h5py.h5d.open(group.id, name.encode())
    try:
        check_dataset(dataset, group.file.id.get_filesize())
    except ValueError as error:
        raise ValueError(f"{group.name}/{name} {error}") from None
    return h5py.Dataset(dataset)


class _Part(io.RawIOBase):
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


class _Values(np.ndarray):
    """A view of a tensor's memory, so TensorFlow can use the tensor without copying."""

    tensor: tf.Tensor | None = None  # None in slices of such an array

    def __tf_tensor__(self, dtype=None, name=None):
        if self.tensor is not None and dtype in (None, self.tensor.dtype):
            self.flags.writeable = False  # it is a variable's value now
            return self.tensor
        return tf.convert_to_tensor(self.view(np.ndarray), dtype, name=name)


class _ReadStore:
    """The store from which Keras loads objects; it reads values from the file, not through HDF5."""

    def __init__(self, path: str, content: _Part):
        self._content = content
        # HDF5 is faster with a path than with a file-like object.
        self._file = h5py.File(content, "r") if path.endswith(".keras") else h5py.File(path, "r", locking=False)

    def __bool__(self):
        return True

    def get(self, path):
        return _ReadValues(_group(self._file, f"{path}/vars" if path else "vars"), self._content)

    def has_path(self, path):
        return path in self._file

    def close(self):
        self._file.close()


class _ReadValues(Mapping):
    """The values of one object, by name."""

    def __init__(self, group: h5py.Group | dict, content: _Part):
        self._group, self._content = group, content

    def __len__(self):
        return len(self._group)

    def __iter__(self):
        return iter(self._group)

    def __contains__(self, name):
        return name in self._group

    def __getitem__(self, name):
        dataset = _dataset(self._group, name)
        begin, dtype = dataset.id.get_offset(), dataset.dtype
        if begin is None or not dataset.shape or not _is_common(dtype) or "dtype" in dataset.attrs:
            return read_dataset(self._group, name)  # it is empty, chunked, a scalar, or of an uncommon dtype
        with tf.device("/cpu:0"):
            tensor = tf.raw_ops.Empty(shape=dataset.shape, dtype=dtype)
        array = array_view(tensor)  # the only way to write to a tensor; no one else holds it yet
        self._content.seek(begin)
        left = array.reshape(-1).view("uint8").data
        while left:
            count = self._content.readinto(left)
            if not count:
                raise OSError(f"{dataset.name} ends early")
            left = left[count:]
        values = array.view(_Values)
        values.tensor = tensor
        return values


def _is_common(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.isnative


@contextlib.contextmanager
def _open_part(path: str, member: str) -> Iterator[_Part]:
    with open_regular(path) as file:
        if path.endswith(".keras"):
            yield _Part(file, *place_of(file, member))
        else:
            yield _Part(file, 0, os.fstat(file.fileno()).st_size)
