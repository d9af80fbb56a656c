"""The whole state of training: how it is held at one instant, how it goes into a file, and how it comes back.

Keras's own writer stores weights and optimizer. What it leaves out goes into the group `global_step` of the same file:

    header                  JSON: format version, counters, last logs, plain state of callbacks, and the path, shape and
                            dtype of every variable
    unsaved/<i>             variables that Keras does not save (seeds of Dropout), shape [replicas, ...]
    replicated/<i>          variables that differ between replicas (BatchNorm's statistics), shape [replicas, ...]
    metrics/<i>             running metrics of the epoch, shape [replicas, ...]
    callbacks/<name>/<i>    arrays that callbacks keep (the best weights of EarlyStopping)

where `<i>` is the variable's place in the list of that name. In a `.keras` archive the same group is the member
`global_step.h5`. Nothing in it is code: it is read as JSON and as plain arrays.
"""

import contextlib
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state  # see _warm_keras
from keras.src.saving import saving_lib

from callbacks import steering
from callbacks.counters import Counts, assign_components, counters_of
from callbacks.errors import InputError
from callbacks.holding import hold
from callbacks.ranks import ranks
from callbacks.weights_file import load_weights, save_weights

FORMAT = 1
_GROUP = "global_step"
_MEMBER = "global_step.h5"


@dataclass(frozen=True)
class Snapshot:
    """The state of training at one instant, held without a copy: TensorFlow copies a variable when it is next written.

    Args:
        counts: the counters.
        header: what goes into the dataset `header`, without the list of variables.
        values: each variable that Keras's writer reads, with the value it has in this snapshot.
        extras: name of a list -> place in it -> the values of all replicas.
        callbacks: name of a callback and attribute -> arrays.
    """

    counts: Counts
    header: dict[str, Any]
    values: list[tuple[keras.Variable, tf.Tensor]]
    extras: dict[str, dict[int, list[tf.Tensor]]]
    callbacks: dict[str, list[np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes of all values, near enough to the size of the file."""
        return sum(value.shape.num_elements() * value.dtype.size for _, value in self.values)


@dataclass(frozen=True)
class Restored:
    """What came back from a file beside the variables.

    Args:
        counts: the counters.
        plain, arrays: the state of callbacks, for `steering.give_back`.
        stopped: whether a callback had ended training for good.
    """

    counts: Counts
    plain: dict[str, dict]
    arrays: dict[str, list[np.ndarray]]
    stopped: bool


def take(model: keras.Model, callbacks: Iterable[keras.callbacks.Callback], metrics: dict[str, float]) -> Snapshot:
    """Holds the state as it is between two batches. All ranks have to, at the same batch; what is theirs alone is gathered.

    Args:
        model: the model in training.
        callbacks: all callbacks of the running `fit`.
        metrics: the newest value of each logged metric, to be told by the file.

    Raises:
        RanksDiffer: if the ranks held different values at the snapshot before.
    """
    callbacks = list(callbacks)
    counters = counters_of(model)
    counts = counters.read()
    plain, arrays = steering.gather(callbacks)
    values, extras = _hold(model)
    shared = {id(v) for v in model.trainable_variables} | {id(v) for v in _optimizer_variables(model)}
    ranks().expect_equal({v.path: value for v, value in values if id(v) in shared}, f"At batch {counts.batch}")
    return Snapshot(
        counts=counts,
        header={
            "format": FORMAT,
            "counts": counts.to_json(),
            "logs": dict(counters.logs),
            "metrics": dict(metrics),
            "callbacks": plain,
            "stopped": steering.has_stopped(callbacks),
        },
        values=values,
        extras=_of_all_ranks(extras),
        callbacks=arrays,
    )


def _hold(model):
    """The chief's value of what Keras's writer reads; and, by list and place in it, all replicas' values of the rest."""
    saved = _saved(model)
    lists = {"unsaved": _unsaved(model), "replicated": _replicated(model), "metrics": model.metrics_variables}
    values, rest = hold(model, saved, [*itertools.chain(*lists.values())])
    of_rest = iter(rest)
    extras = {name: {i: next(of_rest) for i in range(len(variables))} for name, variables in lists.items()}
    return list(zip(saved, values, strict=True)), extras


def write(model: keras.Model, snapshot: Snapshot, path: str) -> None:
    """Writes a file that stock Keras loads, with the rest of the state beside Keras's part of it; from any thread.

    Args:
        model: the model that the snapshot was taken of; it may be in training meanwhile.
        snapshot: what is written.
        path: the file to make, `.weights.h5` or `.keras`.
    """
    _warm_keras()
    with keras.StatelessScope(snapshot.values):
        if path.endswith(".keras"):
            model.save(path)
        else:
            save_weights(model, path)
    if path.endswith(".keras"):
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            _write_group(file, snapshot)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_MEMBER, content.getvalue())
    else:
        with h5py.File(path, "a") as file:
            _write_group(file, snapshot)


def read_header(path: str) -> dict[str, Any]:
    """The JSON part of a checkpoint's state.

    Raises:
        InputError: if it is of a version that this code does not know.
    """
    with _open_group(path) as group:
        return _header(group, path)


def restore(model: keras.Model, path: str) -> Restored:
    """Gives a model the whole state of a checkpoint; nothing is changed where the file does not fit.

    Args:
        model: a built and compiled model.
        path: a file that was verified.

    Raises:
        InputError: if the file belongs to another model; the first variable that does not fit is named.
    """
    strategy = model.distribute_strategy
    if not model.built:
        raise InputError(
            f"A checkpoint fills the variables of a model, and {model.name!r} has none before it is built: "
            "call it on a batch, or give it an Input."
        )
    if model.optimizer is not None and not model.optimizer.built:
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
    header, lists, metrics, arrays = ranks().on_chief(lambda: _load(model, path))
    ranks().give_chiefs_values(_saved(model))
    for name, variables in (("unsaved", _unsaved(model)), ("replicated", _replicated(model))):
        for i, value in lists[name].items():
            if int(i) < len(variables):  # a single replica has no list of what differs between replicas
                assign_components(strategy, variables[int(i)], value)
    counts = Counts(**header["counts"])
    counters_of(model).go_on_from(counts, metrics, header["logs"])
    return Restored(counts, header["callbacks"], arrays, header["stopped"])


def _load(model, path):
    """Keras's part of the file goes into the model; what there is beside it is returned."""
    _warm_keras()
    with _open_group(path) as group:
        header = _header(group, path)
        _check_fit(header["variables"], _saved(model), path)
        load_weights(model, path)
        lists = {name: {i: _read(each) for i, each in group[name].items()} for name in ("unsaved", "replicated")}
        arrays = {name: _read_list(entries) for name, entries in group["callbacks"].items()}
        return header, lists, _read_list(group["metrics"]), arrays


def _of_all_ranks(extras):
    """The components that all ranks hold of each variable; only the chief's where all ranks hold equal ones."""
    world = ranks()
    if world.size == 1:
        return extras
    own = {f"{name}/{i}": [part.numpy() for part in parts] for name, held in extras.items() for i, parts in held.items()}
    sums = world.gather({key: [zlib.crc32(part.tobytes()) for part in parts] for key, parts in own.items()})
    differ = [key for key in own if key.startswith("metrics/") or any(each[key] != sums[0][key] for each in sums)]
    gathered = world.gather({key: own[key] for key in differ})
    for key in differ:
        name, _, i = key.partition("/")
        extras[name][int(i)] = [tf.constant(part) for each in gathered for part in each[key]]
    return extras


def _saved(model):
    return [*model.variables, *_optimizer_variables(model)]


def _optimizer_variables(model):
    return model.optimizer.variables if model.optimizer is not None else []


def _unsaved(model):
    kept = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in kept]


def _replicated(model):
    if model.distribute_strategy.num_replicas_in_sync * ranks().size == 1:
        return []
    return model.non_trainable_weights


def _check_fit(stored, variables, path):
    present = [(v.path, list(v.shape), str(v.dtype)) for v in variables]
    for (_, shape, dtype), (name, here_shape, here_dtype) in zip(stored, present, strict=False):
        if (shape, dtype) != (here_shape, here_dtype):
            raise InputError(
                f"{path} is of another model: {name} has shape {tuple(here_shape)} and dtype {here_dtype} here, "
                f"{tuple(shape)} and {dtype} in the file."
            )
    if len(stored) != len(present):
        longer, where = (stored, "the file") if len(stored) > len(present) else (present, "this model")
        name, shape, _ = longer[min(len(stored), len(present))]
        raise InputError(
            f"{path} is of another model: it has {len(stored)} variables, this one {len(present)}; "
            f"the first that only {where} has is {name}, of shape {tuple(shape)}."
        )


def _warm_keras():
    """Has Keras find out, once for each thread, which attributes its walk over a model skips.

    It makes an optimizer and a layer for that, which a stateless scope forbids, and keeps the answer under another name than
    it looks for.
    """
    for kind in ("Operation", "Layer", "Functional", "Sequential", "Metric", "Optimizer", "Loss", "Cross", "Feature"):
        name = f"saving_attr_skiplist_{kind}"
        if global_state.get_global_attribute(name) is None:
            global_state.set_global_attribute(name, saving_lib.get_attr_skipset(kind))


def _header(group, path):
    header = json.loads(group["header"][()].tobytes())
    if header["format"] != FORMAT:
        raise InputError(
            f"{path} has format {header['format']}; this version of the callbacks reads format {FORMAT}. "
            "Read it with the version that wrote it."
        )
    return header


@contextlib.contextmanager
def _open_group(path):
    if path.endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read(_MEMBER))
    else:
        source = path
    with h5py.File(source, "r") as file:
        yield file[_GROUP]


def _write_group(file, snapshot):
    group = file.create_group(_GROUP)
    header = snapshot.header | {"variables": [[v.path, list(v.shape), str(v.dtype)] for v, _ in snapshot.values]}
    group["header"] = np.frombuffer(json.dumps(header).encode(), "uint8")
    for name, variables in snapshot.extras.items():
        entries = group.create_group(name)
        for i, parts in variables.items():
            values = np.stack([part.numpy() for part in parts])
            if name != "replicated" or (values != values[0]).any():
                _write(entries, str(i), values)
    for name, arrays in snapshot.callbacks.items():
        entries = group.create_group(f"callbacks/{name}")
        for i, array in enumerate(arrays):
            _write(entries, str(i), np.asarray(array))
    group.require_group("callbacks")


def _write(entries, name, array):
    """HDF5 has no bfloat16: such an array is stored as the bits that it is."""
    if array.dtype.kind != "V":
        entries[name] = array
    else:
        entries[name] = array.view("uint16")
        entries[name].attrs["dtype"] = array.dtype.name


def _read(dataset):
    array = dataset[()]
    return array.view(tf.as_dtype(dataset.attrs["dtype"]).as_numpy_dtype) if "dtype" in dataset.attrs else array


def _read_list(entries):
    return [_read(entries[name]) for name in sorted(entries, key=int)]
