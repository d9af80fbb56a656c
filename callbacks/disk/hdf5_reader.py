"""Reads HDF5 files directly into tensors, without copies.

h5py fills an array with zeros and then with the values, and three more copies make it a tensor. In a `.keras` archive, Keras
reads everything from the beginning up to a variable, for each variable that does not follow the one before.
"""

from collections.abc import Iterable
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from callbacks.disk.hdf5_file import WEIGHTS_MEMBER, Part, dataset_of, hdf5_of, open_part, read_dataset
from callbacks.model.keras_private import KERAS_STORE, KNOWS_WALK, LOAD_STATE, array_view
from callbacks.model.keras_walk import saved_objects


def load_weights(model: keras.Model, path: str, skip: Iterable[Any] = ()) -> None:
    """Loads weights as `model.load_weights(path)` does, also into a model that Keras considers unbuilt.

    All values are read before the first one is assigned, so the model is unchanged if the disk fails.

    Args:
        model: a model whose variables exist.
        path: a verified `.weights.h5` or `.keras` file.
        skip: objects of the model that stay as they are.

    Raises:
        ValueError: if the file does not fit the model.
        OSError: if it cannot be read.
    """
    left_alone = list(skip)
    if None in (LOAD_STATE, KERAS_STORE):
        kept = [(variable, variable.numpy()) for each in left_alone for variable in each.variables]
        model.load_weights(path)
        for variable, value in kept:
            variable.assign(value)
        return
    store = _read(path, _paths_of(model, left_alone))
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    visited = {id(each) for each in left_alone}
    LOAD_STATE(model, store, None, "", visited_saveables=visited, failed_saveables=failed, error_msgs=errors)
    for each, error in errors.values() if failed else ():
        raise ValueError(f"{len(errors)} objects could not be loaded from {path}, first {getattr(each, 'name', each)}: {error}")


def _paths_of(model: keras.Model, objects: list[Any]) -> tuple[str, ...]:
    """Returns the beginnings of the paths of these objects' groups, where Keras's walk is known."""
    wanted = {id(each) for each in objects}
    return tuple(f"{path}/" for path, each in saved_objects(model) if id(each) in wanted) if wanted and KNOWS_WALK else ()


def _read(path: str, skip: tuple[str, ...]) -> Any:
    """Reads all values of a file, except those in groups whose path starts with one of `skip`.

    Returns:
        A `_Store` that Keras accepts as its own store.
    """
    names: set[str] = set()
    datasets: list[str] = []
    groups: dict[str, dict[str, Any]] = {}

    def note(name, info):
        name = name.decode(errors="surrogateescape")
        names.add(name)
        if info.type == h5py.h5o.TYPE_DATASET:
            datasets.append(name)

    with open_part(path, WEIGHTS_MEMBER) as content, hdf5_of(content) as file:
        h5py.h5o.visit(file.id, note, info=True)
        for parent, _, name in (each.rpartition("/") for each in datasets):
            if f"/{parent}".endswith("/vars") and not parent.startswith(skip):
                groups.setdefault(parent, {})[name] = _value(file[parent], name, content)
    return type(_Store.__name__, (_Store, KERAS_STORE), {})(groups, names)


class _Store:
    """The store from which Keras loads objects, in memory.

    Args:
        groups: the values of each object by name, by the path of its group.
        names: the paths of all groups and datasets in the file.
    """

    def __init__(self, groups: dict[str, dict[str, Any]], names: set[str]):
        self._groups, self._names = groups, names

    def __bool__(self):
        return True

    def get(self, path):
        return self._groups.get(f"{path}/vars" if path else "vars", {})

    def has_path(self, path):
        return path in self._names


class _Values(np.ndarray):
    """A view of a tensor's memory, so TensorFlow can use the tensor without copying."""

    tensor: tf.Tensor | None = None  # None in slices of such an array

    def __tf_tensor__(self, dtype=None, name=None):
        if self.tensor is not None and dtype in (None, self.tensor.dtype):
            self.flags.writeable = False  # it is a variable's value now
            return self.tensor
        return tf.convert_to_tensor(self.view(np.ndarray), dtype, name=name)


def _value(group: h5py.Group, name: str, content: Part) -> np.ndarray:
    """Reads a value from its place in the file, not through HDF5."""
    dataset = dataset_of(group, name)
    begin, dtype = dataset.id.get_offset(), dataset.dtype
    if begin is None or not dataset.shape or not _is_common(dtype) or "dtype" in dataset.attrs:
        return read_dataset(group, name)  # it is empty, chunked, a scalar, or of an uncommon dtype
    with tf.device("/cpu:0"):
        tensor = tf.raw_ops.Empty(shape=dataset.shape, dtype=dtype)
    array = array_view(tensor)  # the only way to write to a tensor; no one else holds it yet
    content.seek(begin)
    if content.readinto(array.reshape(-1).view("uint8").data) < array.nbytes:
        raise OSError(f"{dataset.name} ends early")
    values = array.view(_Values)
    values.tensor = tensor
    return values


def _is_common(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.isnative
