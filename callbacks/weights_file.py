"""Weights into a file as Keras writes it, and back: without copies on the way, and from any place of an archive.

Keras copies a variable twice before HDF5 writes it. On the way back HDF5 fills an array with zeros, then with the values, and
these are copied three times until they are a tensor. Of a `.keras` archive Keras reads everything from the begin up to a variable,
for each that does not follow the one before.
"""

import contextlib
import io
import os
import struct
import zipfile
from typing import Any, BinaryIO

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras.src.saving import saving_lib  # stores and walks of models have no public name

_MEMBER = "model.weights.h5"  # of an archive
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member: the lengths of its name and of what else stands before its content


def save_weights(model: keras.Model, path: str) -> None:
    """What `model.save_weights(path)` does.

    Args:
        model: a built model.
        path: the `.weights.h5` file to make.

    Raises:
        OSError: if it cannot be written.
    """
    with contextlib.closing(_WriteStore(path, mode="w")) as store:
        saving_lib._save_state(model, store, None, "", visited_saveables=set())


def load_weights(model: keras.Model, path: str) -> None:
    """What `model.load_weights(path)` does.

    Args:
        model: a built model.
        path: a `.weights.h5` or a `.keras` file that was verified.

    Raises:
        ValueError: if the file does not fit the model.
        OSError: if it cannot be read.
    """
    failed: set[int] = set()
    errors: dict[int, Any] = {}
    with open(path, "rb") as file, contextlib.closing(_ReadStore(path, _Part(file, *_place(file, path)))) as store:
        saving_lib._load_state(model, store, None, "", visited_saveables=set(), failed_saveables=failed, error_msgs=errors)
    if failed:
        saving_lib._raise_loading_failure(errors)


class _Part(io.RawIOBase):
    """A part of a file, as HDF5 reads a file."""

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

    def readinto(self, buffer):
        wanted = memoryview(buffer)[: max(self._size - self._at, 0)]
        count = os.preadv(self._descriptor, [wanted], self._begin + self._at)
        self._at += count
        return count


class _Values(np.ndarray):
    """An array in the memory of a tensor, which TensorFlow so need not make of it."""

    tensor: tf.Tensor | None = None  # parts of such an array have none

    def __tf_tensor__(self, dtype=None, name=None):
        if self.tensor is not None and dtype in (None, self.tensor.dtype):
            self.flags.writeable = False  # it is a variable's value now
            return self.tensor
        return tf.convert_to_tensor(self.view(np.ndarray), dtype, name=name)


class _WriteStore(saving_lib.H5IOStore):
    """Where Keras's layers put their variables."""

    def __setitem__(self, key, value):
        if isinstance(value, (keras.Variable, tf.Tensor)):
            value = np.asarray(tf.convert_to_tensor(value))
        if not isinstance(value, np.ndarray) or not _is_common(value.dtype):
            return super().__setitem__(key, value)
        if not self._h5_entry_initialized:
            self._create_h5_group(self._h5_entry_path)
        self._h5_entry_group[key] = value


class _ReadStore(saving_lib.H5IOStore):
    """What Keras's layers ask for their variables, with values that come from the file and not through HDF5."""

    def __init__(self, path: str, content: _Part):
        self._content = content
        super().__init__(path)

    def _get_h5_file(self, path_or_io, mode=None):
        is_archive = path_or_io.suffix == ".keras"
        return h5py.File(self._content if is_archive else path_or_io, "r")  # HDF5 itself looks faster into a file of its own

    def __getitem__(self, key):
        dataset = saving_lib.safe_get_h5_dataset(self._h5_entry_group, key)
        begin, dtype = dataset.id.get_offset(), dataset.dtype
        if begin is None or not dataset.shape or not _is_common(dtype) or "dtype" in dataset.attrs:
            return super().__getitem__(key)  # it is empty, in pieces, a single number, or of another kind
        with tf.device("/cpu:0"):
            tensor = tf.raw_ops.Empty(shape=dataset.shape, dtype=dtype)
        array = tensor._numpy()  # the only way to write to a tensor; nobody else has it yet
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


def _place(file: BinaryIO, path: str) -> tuple[int, int]:
    """Where HDF5's part of the file begins, and its size."""
    if not path.endswith(".keras"):
        return 0, os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(_MEMBER)
    before = os.pread(file.fileno(), _LOCAL_HEADER.size, member.header_offset)
    return member.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(before)), member.file_size
