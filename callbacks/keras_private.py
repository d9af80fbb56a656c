"""The private names of Keras and TensorFlow that the checkpoints need, each with what is done where a version lacks it.

Seen in Keras 3.6 to 3.15 and TensorFlow 2.17 to 2.21.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.saving_lib import H5IOStore
from keras.src.utils.naming import to_snake_case
from tensorflow.python.client import device_lib
from tensorflow.python.eager import context, execute

# Since Keras 3.14 the saving walk also visits containers within containers.
VISITS_NESTED_CONTAINERS = hasattr(saving_lib, "_container_path_present")


def saved_children(saveable: KerasSaveable) -> Iterator[tuple[str, Any]]:
    """Yields the attributes that Keras's saving walk visits, in its order.

    `saving_lib._walk_saveable` does the same, but Keras 3.15 makes a reference layer for each call of it, since it looks for
    its cache under another name than it stores it under.
    """
    kind = saveable._obj_type()
    skipped = _skipped_attributes(kind)
    if kind in ("Sequential", "Functional"):
        yield "layers", saveable.layers
    for name in sorted(dir(saveable), key=lambda name: f"~{name}" if name.startswith("_") else name):
        if name.startswith("__") or name in skipped:
            continue
        try:
            child = getattr(saveable, name)
        except Exception:  # a property that raises; Keras passes over it too
            continue
        yield name, child


@functools.cache
def _skipped_attributes(kind: str) -> frozenset[str]:
    return frozenset(saving_lib.get_attr_skipset(kind))


def child_names(container: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields the saveables and containers in a container, named as in Keras's files: `dense`, `dense_1`, `container`."""
    seen: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if isinstance(child, KerasSaveable):
            name = to_snake_case(type(child).__name__)
        elif isinstance(child, (list, dict, tuple)) and VISITS_NESTED_CONTAINERS:
            name = "container"
        else:
            continue
        number = seen[name] = seen.get(name, -1) + 1
        yield f"{name}_{number}" if number else name, child


def load_state(model: keras.Model, store: H5IOStore) -> dict[str, Exception]:
    """Loads Keras's part of a file into a model and returns the error of each object that could not be loaded, by its name."""
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    saving_lib._load_state(model, store, None, "", visited_saveables=set(), failed_saveables=failed, error_msgs=errors)
    return {str(getattr(saveable, "name", saveable)): error for saveable, error in errors.values()} if failed else {}


def model_archive_json(model: keras.Model) -> dict[str, str]:
    """Returns the JSON members of the model's `.keras` archive: file name -> text."""
    config, metadata = saving_lib._serialize_model_as_json(model)
    return {saving_lib._METADATA_FILENAME: metadata, saving_lib._CONFIG_FILENAME: config}


def read_variables(handles: Sequence[Any], types: Sequence[int]) -> list[tf.Tensor]:
    """Reads variables of one device with one operation; one call for each variable takes ten times as long.

    Args:
        handles: resource handles of the variables.
        types: their dtypes, as TensorFlow's enum.
    """
    attributes = ("N", len(handles), "dtypes", types)
    return execute.execute(b"_ReadVariablesOp", len(handles), inputs=handles, attrs=attributes, ctx=context.context())


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """Returns the generator that Keras draws from where no seed is given; None before the first such draw."""
    return global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)


def make_global_seed_generator() -> keras.random.SeedGenerator:
    """Returns the same generator, and makes it where it does not exist yet."""
    return seed_generator.global_seed_generator()


def memory_limits() -> dict[str, int]:
    """Returns the bytes that TensorFlow's allocator may take on each GPU: `"/gpu:0"` -> bytes."""
    gpus = [device for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    return {f"/gpu:{device.name.rpartition(':')[2]}": device.memory_limit for device in gpus}
