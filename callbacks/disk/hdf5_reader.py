"""Reads HDF5 files directly into tensors, without copies.

h5py fills an array with zeros and then with the values, and three more copies make it a tensor. In a `.keras` archive, Keras
reads everything from the beginning up to a variable, for each variable that does not follow the one before.
"""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from callbacks.disk.hdf5_file import WEIGHTS_MEMBER, Part, hdf5_of, open_part, read_dataset
from callbacks.model.keras_private import KERAS_STORE, KNOWS_WALK, LOAD_STATE, array_view
from callbacks.model.keras_walk import saved_objects

_MOST_THREADS = 4  # that read values
_LARGE = 1 << 16  # bytes of a value that is worth a thread


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
    if not (KNOWS_WALK and _load(model, store, left_alone)):
        _load_by_keras(model, store, left_alone, path)


def _load(model: keras.Model, store: "_Store", skip: list[Any]) -> bool:
    """Loads each object from the group where a save puts it, in half the time of Keras's walk.

    Returns:
        Whether every object could be loaded. If not, other groups may fit, as in files of other versions of Keras.
    """
    try:
        for path, each in saved_objects(model, skip):
            if hasattr(each, "load_own_variables"):
                each.load_own_variables(store.get(path))
    except Exception:  # of any layer
        return False
    return True


def _load_by_keras(model: keras.Model, store: "_Store", skip: list[Any], path: str) -> None:
    """Loads all objects as Keras does: if the first group of an object does not fit, it tries the others that the walk finds.

    Raises:
        ValueError: if the file does not fit the model.
    """
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    visited = {id(each) for each in skip}
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
    found: list[tuple[bytes, bool]] = []
    names: set[str] = set()
    groups: dict[str, dict[str, Any]] = {}
    with open_part(path, WEIGHTS_MEMBER) as content, hdf5_of(content) as file, _Reads(content) as reads, tf.device("/cpu:0"):
        h5py.h5o.visit(file.id, lambda name, info: found.append((name, info.type == h5py.h5o.TYPE_DATASET)), info=True)
        for name, is_dataset in found:
            text = name.decode(errors="surrogateescape")
            names.add(text)
            path_of_object, is_value, key = f"/{text}".rpartition("/vars/")
            parent = f"{path_of_object}/vars".removeprefix("/")
            if is_dataset and is_value and not parent.startswith(skip):
                groups.setdefault(parent, {})[key] = _value(file, name, reads)
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


class _Reads:
    """Reads large values in threads, since most of the time goes to the allocation of the pages that they fill.

    Args:
        content: the bytes of the file.

    Raises:
        OSError: at the end of the block, if a value could not be read.
    """

    def __init__(self, content: Part):
        self._content = content
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS))
        self._large: list[Future[bool]] = []
        self._are_whole = True

    def __enter__(self) -> "_Reads":
        return self

    def begin(self, place: int, array: np.ndarray) -> None:
        """Begins to fill an array with the bytes at a place in the file."""
        if array.nbytes >= _LARGE:
            self._large.append(self._threads.submit(self._read, place, array))
        else:
            self._are_whole &= self._read(place, array)

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._threads.shutdown(cancel_futures=kind is not None)
        if kind is None and not (self._are_whole and all(read.result() for read in self._large)):
            raise OSError("a value ends early")

    def _read(self, place: int, array: np.ndarray) -> bool:
        return self._content.read_at(place, array.reshape(-1).view("uint8").data) == array.nbytes


def _value(file: h5py.File, name: bytes, reads: _Reads) -> np.ndarray:
    """Returns a value, or an array that will have it after the reads. It is read from its place in the file, not through HDF5.

    Args:
        file: the open file.
        name: the path of the dataset.
        reads: the reads in progress.
    """
    dataset = h5py.h5d.open(file.id, name)
    place, dtype = dataset.get_offset(), dataset.dtype
    if place is None or not dataset.shape or not _is_common(dtype) or h5py.h5a.exists(dataset, b"dtype"):
        return read_dataset(file, name.decode())  # it is empty, a scalar, or of an uncommon dtype
    tensor = tf.raw_ops.Empty(shape=np.array(dataset.shape, "int32"), dtype=tf.as_dtype(dtype))  # a tuple takes three times as long
    array = array_view(tensor)  # the only way to write to a tensor; no one else holds it yet
    reads.begin(place, array)
    values = array.view(_Values)
    values.tensor = tensor
    return values


def _is_common(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.isnative
