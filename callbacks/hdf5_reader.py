"""Reads HDF5 files directly into tensors, without copies.

h5py fills an array with zeros and then with the values, and three more copies make it a tensor. In a `.keras` archive, Keras
reads everything from the beginning up to a variable, for each variable that does not follow the one before.
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from callbacks.hdf5_file import WEIGHTS_MEMBER, Part, open_part, plain_dataset, read_dataset
from callbacks.keras_private import KERAS_STORE, LOAD_STATE, array_view


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
    with open_part(path, WEIGHTS_MEMBER) as content, contextlib.closing(_store(path, content)) as store:
        errors = _load_state(model, store, skip)
    if errors is None:
        kept = [(variable, variable.numpy()) for each in skip for variable in each.variables]
        model.load_weights(path)
        for variable, value in kept:
            variable.assign(value)
        return
    for name, error in errors.items():
        raise ValueError(f"{len(errors)} objects could not be loaded from {path}, first {name}: {error}")


def _store(path: str, content: Part) -> Any:
    """Returns a `_ReadStore` that Keras accepts as its own store."""
    kind = _ReadStore if KERAS_STORE is None else type(_ReadStore.__name__, (_ReadStore, KERAS_STORE), {})
    return kind(path, content)


def _load_state(model: keras.Model, store: Any, skip: Iterable[Any]) -> dict[str, Exception] | None:
    """Loads the objects of a model, and returns the errors by their names; None if this version of Keras cannot do that."""
    if None in (LOAD_STATE, KERAS_STORE):
        return None
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    visited = {id(each) for each in skip}
    LOAD_STATE(model, store, None, "", visited_saveables=visited, failed_saveables=failed, error_msgs=errors)
    return {str(getattr(each, "name", each)): error for each, error in errors.values()} if failed else {}


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

    def __init__(self, path: str, content: Part):
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

    def __init__(self, group: h5py.Group | dict, content: Part):
        self._group, self._content = group, content

    def __len__(self):
        return len(self._group)

    def __iter__(self):
        return iter(self._group)

    def __contains__(self, name):
        return name in self._group

    def __getitem__(self, name):
        dataset = plain_dataset(self._group, name)
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
