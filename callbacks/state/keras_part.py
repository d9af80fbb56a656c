"""Finds what Keras saves in a weights file, by one walk over the model in the training thread.

`model.save_weights` walks the model and writes what it visits. This walk visits the same objects in the same order and only
records where each variable goes. A save can then read all variables at one instant, and the thread that writes them needs
neither the model nor Keras. If the walk of this version is not known, Keras itself writes a file at each save, which is read back.
"""

import contextlib
import functools
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import h5py
import keras
import numpy as np
import tensorflow as tf

from callbacks.disk.hdf5_file import WEIGHTS_MEMBER, read_dataset
from callbacks.model.keras_private import KNOWS_WALK, model_archive_json
from callbacks.model.keras_walk import saved_objects
from callbacks.model.state_tree import VARIABLES, Variable


@dataclass
class Group:
    """An HDF5 group of Keras's part of the file.

    Args:
        path: the group's path.
        name: the object's name, stored as an attribute of the group.
        values: the value of each dataset, by name.
        is_of_optimizer: whether the object is an optimizer.
        variables: name of a dataset -> name of the variable in the state tree.
    """

    path: str
    name: str | None
    values: dict[str, Any]  # a tensor, from `fetch` on an array
    is_of_optimizer: bool
    variables: Mapping[str, str]


class PlanOfKerasPart(Protocol):
    """What Keras saves of a model; valid until the model's structure changes."""

    def variables(self) -> Iterable[Variable]:
        """Returns the variables whose values the file holds as they are."""

    def variables_to_repeat(self) -> Iterable[Variable]:
        """Returns the variables that a load may not restore: of objects that compute arrays, or that user code saves."""

    def read(self, tensors: Mapping[int, tf.Tensor]) -> list[Group]:
        """Returns the groups of the file, with their values.

        Args:
            tensors: the value of each of the variables, by the variable's `id`.
        """

    def members(self) -> dict[str, bytes]:
        """Returns the contents of the members of a `.keras` archive other than the weights, by name."""


def plan_of_keras_part(model: keras.Model, names: Mapping[int, str]) -> PlanOfKerasPart:
    """Finds what Keras saves of a model.

    Args:
        model: the model.
        names: the name of each variable in the state tree, by the variable's `id`.
    """
    return _FoundByWalk(model, names) if KNOWS_WALK else _WrittenByKeras(model)


class _FoundByWalk:
    """What a walk over the model finds, without the values, which change from save to save."""

    def __init__(self, model: keras.Model, names: Mapping[int, str]):
        self._model, self._names = model, names
        self._objects = [_SavedObject(path, each, _values_of(each)) for path, each in saved_objects(model)]

    def variables(self) -> Iterable[Variable]:
        return (variable for each in self._objects for variable in each.variables())

    def variables_to_repeat(self) -> Iterable[Variable]:
        others = (each for each in self._objects if not each.loads_as_saved)
        return (variable for each in others for variable in (*each.variables(), *getattr(each.saveable, "variables", ())))

    def read(self, tensors: Mapping[int, tf.Tensor]) -> list[Group]:
        return [each.read(tensors, self._names) for each in self._objects]

    def members(self) -> dict[str, bytes]:
        members = model_archive_json(self._model)
        if members is None:
            return _members_by_keras(self._model)
        return {name: text.encode() for name, text in members.items()} | self._assets()

    def _assets(self) -> dict[str, bytes]:
        """Returns the contents of files that layers add to an archive, such as vocabularies, by member name."""
        found = {}
        for each in self._objects:
            if hasattr(each.saveable, "save_assets"):
                with tempfile.TemporaryDirectory() as directory:
                    each.saveable.save_assets(directory)
                    for file in Path(directory).rglob("*"):
                        if file.is_file():
                            found[str(PurePosixPath("assets", each.path, file.relative_to(directory)))] = file.read_bytes()
        return found


class _WrittenByKeras:
    """What stock Keras writes at each save."""

    def __init__(self, model: keras.Model):
        self._model = model

    def variables(self) -> Iterable[Variable]:
        return ()  # which dataset holds which variable is not known, so all variables are saved beside Keras's part

    def variables_to_repeat(self) -> Iterable[Variable]:
        return ()

    def read(self, tensors: Mapping[int, tf.Tensor]) -> list[Group]:
        found: list[Group] = []

        def visit(name, item):
            if isinstance(item, h5py.Group) and PurePosixPath(name).name == "vars":
                names: list[str] = []
                item.visit(names.append)  # also those within groups
                values: dict[str, Any] = {key: read_dataset(item, key) for key in names if isinstance(item[key], h5py.Dataset)}
                path = str(PurePosixPath(name).parent)
                found.append(Group("" if path == "." else path, item.attrs.get("name"), values, False, {}))

        with _saved(self._model.save_weights, ".weights.h5") as path, h5py.File(path, "r", locking=False) as file:
            file.visititems(visit)
        return found

    def members(self) -> dict[str, bytes]:
        return _members_by_keras(self._model)


def _members_by_keras(model: keras.Model) -> dict[str, bytes]:
    with _saved(model.save, ".keras") as path, zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != WEIGHTS_MEMBER}


@contextlib.contextmanager
def _saved(save: Any, suffix: str) -> Iterator[Path]:
    """Has stock Keras save a temporary file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"model{suffix}")
        save(path)
        yield path


@dataclass(frozen=True)
class _SavedObject:
    """An object that has its own group in the file.

    Args:
        path: the path of its group, in which `vars` holds the values; empty for the model itself.
        saveable: the object, such as a layer or an optimizer.
        values: the variable of each dataset, by name; or an array that the object computes for the file, such as a kernel with
            merged LoRA adapters.
    """

    path: str
    saveable: Any
    values: dict[str, Variable | np.ndarray]

    def variables(self) -> Iterable[Variable]:
        """Returns the variables whose values the group contains as they are."""
        return (value for value in self.values.values() if isinstance(value, VARIABLES))

    @property
    def loads_as_saved(self) -> bool:
        """Whether Keras's own code saves and loads the object, and saves its variables as they are."""
        methods = (getattr(type(self.saveable), name, None) for name in ("save_own_variables", "load_own_variables"))
        are_of_keras = all(getattr(method, "__module__", "").partition(".")[0] == "keras" for method in methods)
        return are_of_keras and len(self._keys) == len(self.values)

    def read(self, tensors: Mapping[int, tf.Tensor], names: Mapping[int, str]) -> Group:
        values: dict[str, Any] = {key: tensors[of] for key, of in self._keys.items()}
        if len(values) < len(self.values):  # the object computes arrays at each save
            made = _values_of(self.saveable)
            values = {key: values[key] if isinstance(value, VARIABLES) else value for key, value in made.items()}
        variables = {key: names[of] for key, of in self._keys.items() if of in names}
        return Group(self.path, self._name, values, isinstance(self.saveable, keras.optimizers.Optimizer), variables)

    @functools.cached_property
    def _keys(self) -> dict[str, int]:
        return {key: id(value) for key, value in self.values.items() if isinstance(value, VARIABLES)}

    @functools.cached_property
    def _name(self) -> str | None:
        name = getattr(self.saveable, "name", None)
        return name if isinstance(name, str) else None


def _values_of(saveable: Any) -> dict[str, Variable | np.ndarray]:
    """Returns what an object's `save_own_variables` stores: variables as they are, other values as arrays."""
    if type(saveable).save_own_variables is keras.optimizers.Optimizer.save_own_variables:  # which copies each variable
        return {str(i): variable for i, variable in enumerate(saveable.variables)}
    store: dict[str, Any] = {}
    saveable.save_own_variables(store)
    return {key: value if isinstance(value, VARIABLES) else _to_array(value) for key, value in store.items()}


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, tf.Tensor) or keras.ops.is_tensor(value):
        return np.array(keras.ops.convert_to_numpy(value))
    return np.array(value)
