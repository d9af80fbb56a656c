"""Finds what Keras saves in a weights file, by one walk over the model in the training thread.

`model.save_weights` walks the model and writes what it visits. This walk visits the same objects in the same order and only
records where each variable goes. A save can then read all variables at one instant, and the thread that writes them needs
neither the model nor Keras.
"""

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.keras_private import KerasSaveable, child_names, saved_children
from callbacks.state_tree import Variable


@dataclass(frozen=True)
class SavedObject:
    """An object that has its own group in the file.

    Args:
        path: the path of its group, in which `vars` holds the values; empty for the model itself.
        saveable: the object, such as a layer or an optimizer.
        values: the variable of each dataset, by name; or an array that the object computes for the file, such as a kernel with
            merged LoRA adapters.
    """

    path: str
    saveable: KerasSaveable
    values: dict[str, Variable | np.ndarray]

    @functools.cached_property
    def makes_arrays(self) -> bool:
        """Whether the object computes arrays at each save."""
        return any(isinstance(value, np.ndarray) for value in self.values.values())


def saved_objects(model: keras.Model) -> list[SavedObject]:
    """Returns the objects that `model.save_weights` writes, in the same order."""
    found: list[SavedObject] = []
    _visit(model, "", found, set())
    return found


def values_of(saveable: KerasSaveable) -> dict[str, Variable | np.ndarray]:
    """Returns what an object's `save_own_variables` stores: variables as they are, other values as arrays."""
    if type(saveable).save_own_variables is keras.optimizers.Optimizer.save_own_variables:  # which copies each variable
        return {str(i): variable for i, variable in enumerate(saveable.variables)}
    store: dict[str, Any] = {}
    saveable.save_own_variables(store)
    return {key: value if isinstance(value, Variable) else _to_array(value) for key, value in store.items()}


def saved_assets(objects: Iterable[SavedObject]) -> dict[str, bytes]:
    """Returns the contents of the files that layers add to a `.keras` archive, such as vocabularies, by member name."""
    found = {}
    for each in objects:
        if hasattr(each.saveable, "save_assets"):
            with tempfile.TemporaryDirectory() as directory:
                each.saveable.save_assets(directory)
                for file in Path(directory).rglob("*"):
                    if file.is_file():
                        found[str(PurePosixPath("assets", each.path, file.relative_to(directory)))] = file.read_bytes()
    return found


def _visit(saveable: KerasSaveable, path: str, found: list[SavedObject], visited: set[int]) -> None:
    if id(saveable) in visited:
        return
    if hasattr(saveable, "save_own_variables"):
        found.append(SavedObject(path, saveable, values_of(saveable)))
    visited.add(id(saveable))
    for name, child in saved_children(saveable):
        inner = f"{path}/{name}" if path else name
        if isinstance(child, KerasSaveable):
            _visit(child, inner, found, visited)
        elif isinstance(child, (list, dict, tuple)):
            _visit_container(child, inner, found, visited, set())


def _visit_container(container: Iterable, path: str, found: list[SavedObject], visited: set[int], outer: set[int]) -> None:
    if id(container) in outer:
        return
    outer.add(id(container))
    for name, child in child_names(container):
        if isinstance(child, KerasSaveable):
            _visit(child, f"{path}/{name}", found, visited)
        else:
            _visit_container(child, f"{path}/{name}", found, visited, outer)


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, tf.Tensor) or keras.ops.is_tensor(value):
        return np.array(keras.ops.convert_to_numpy(value))
    return np.array(value)
