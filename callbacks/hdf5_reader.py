"""Reads HDF5 files directly into tensors, without copies.

h5py fills an array with zeros and then with the values, and three more copies make it a tensor. In a `.keras` archive, Keras
reads everything from the beginning up to a variable, for each variable that does not follow the one before.
"""

import contextlib

import h5py
import keras
import numpy as np
import tensorflow as tf

from callbacks.hdf5_file import WEIGHTS_MEMBER, Part, open_part, plain_dataset
from callbacks.keras_private import H5IOStore, array_view, load_state


def load_weights(model: keras.Model, path: str) -> None:
    """Loads weights as `model.load_weights(path)` does, also into a model that Keras considers unbuilt.

    Args:
        model: a model whose variables exist.
        path: a verified `.weights.h5` or `.keras` file.

    Raises:
        ValueError: if the file does not fit the model.
        OSError: if it cannot be read.
    """
    with open_part(path, WEIGHTS_MEMBER) as content, contextlib.closing(_ReadStore(path, content)) as store:
        errors = load_state(model, store)
    for name, error in errors.items():
        raise ValueError(f"{len(errors)} objects could not be loaded from {path}, first {name}: {error}")


class _Values(np.ndarray):
    """A view of a tensor's memory, so TensorFlow can use the tensor without copying."""

    tensor: tf.Tensor | None = None  # None in slices of such an array

    def __tf_tensor__(self, dtype=None, name=None):
        if self.tensor is not None and dtype in (None, self.tensor.dtype):
            self.flags.writeable = False  # it is a variable's value now
            return self.tensor
        return tf.convert_to_tensor(self.view(np.ndarray), dtype, name=name)


class _ReadStore(H5IOStore):
    """The store from which Keras's layers load their variables; it reads values from the file, not through HDF5."""

    def __init__(self, path: str, content: Part):
        self._content = content
        super().__init__(path)

    def _get_h5_file(self, path_or_io, mode=None):
        if path_or_io.suffix == ".keras":
            return h5py.File(self._content, "r")
        return h5py.File(path_or_io, "r", locking=False)  # HDF5 is faster with a path than with a file-like object

    def __getitem__(self, key):
        dataset = plain_dataset(self._h5_entry_group, key)
        begin, dtype = dataset.id.get_offset(), dataset.dtype
        if begin is None or not dataset.shape or not _is_common(dtype) or "dtype" in dataset.attrs:
            return super().__getitem__(key)  # it is empty, chunked, a scalar, or of an uncommon dtype
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
