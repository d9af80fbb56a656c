"""The whole state of training: what is held at one instant, how it goes into a file, and how it comes back.

Keras's own writer stores weights and optimizer. What it leaves out goes into the group `global_step` of the same file:

    header                  JSON: format version, counters, last logs, and the path, shape and dtype of every variable
    unsaved/<i>             variables that Keras does not save (seeds of Dropout), shape [replicas, ...]
    replicated/<i>          variables that differ between replicas (BatchNorm's statistics), shape [replicas, ...]
    metrics/<i>             running metrics of the epoch, shape [replicas, ...]

where `<i>` is the variable's place in the list of that name. In a `.keras` archive the same group is the member
`global_step.h5`. Nothing in it is code: it is read as JSON and as plain arrays.
"""

import contextlib
import io
import json
import zipfile
from dataclasses import dataclass

import h5py
import keras
import numpy as np

from callbacks.counters import Counts, assign_components, components, counters_of
from callbacks.errors import InputError

FORMAT = 1
_GROUP = "global_step"
_MEMBER = "global_step.h5"


@dataclass(frozen=True)
class Snapshot:
    """The state of training at one instant.

    Args:
        counts: the counters.
        header: what goes into the dataset `header`.
        arrays: for each list of variables (`unsaved`, `replicated`, `metrics`), place in that list -> array of shape
            `[replicas, ...]`.
    """

    counts: Counts
    header: dict
    arrays: dict[str, dict[int, np.ndarray]]


def take(model: keras.Model) -> Snapshot:
    """Holds the state of a model, as it is between two batches."""
    counters, strategy = counters_of(model), model.distribute_strategy
    counts = counters.read()

    def stacked(variable):
        return np.stack([part.numpy() for part in components(strategy, variable)])

    replicated = {i: stacked(v) for i, v in enumerate(_replicated(model))}
    return Snapshot(
        counts=counts,
        header={
            "format": FORMAT,
            "counts": counts.to_json(),
            "logs": counters.logs,
            "variables": [_signature(v) for v in _saved(model)],
        },
        arrays={
            "unsaved": {i: stacked(v) for i, v in enumerate(_unsaved(model))},
            "replicated": {i: values for i, values in replicated.items() if (values != values[0]).any()},
            "metrics": {i: stacked(v) for i, v in enumerate(model.metrics_variables)},
        },
    )


def write(model: keras.Model, snapshot: Snapshot, path: str) -> None:
    """Writes a file that stock Keras loads, with the rest of the state beside Keras's part of it."""
    if path.endswith(".keras"):
        model.save(path)
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            _write_group(file, snapshot)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_MEMBER, content.getvalue())
    else:
        model.save_weights(path)
        with h5py.File(path, "a") as file:
            _write_group(file, snapshot)


def read_header(path: str) -> dict:
    """The JSON part of a checkpoint's state.

    Raises:
        InputError: if the file has none, or one of a version that this code does not know.
    """
    with _open_group(path) as group:
        return _header(group, path)


def restore(model: keras.Model, path: str) -> Counts:
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
    with _open_group(path) as group:
        header = _header(group, path)
        _check_fit(header["variables"], [_signature(v) for v in _saved(model)], path)
        model.load_weights(path)
        for name, variables in (("unsaved", _unsaved(model)), ("replicated", _replicated(model))):
            for i, dataset in group[name].items():
                if int(i) < len(variables):  # a single replica has no list of what differs between replicas
                    variable = variables[int(i)]
                    assign_components(strategy, variable, _read_array(dataset, variable.value.dtype.as_numpy_dtype))
        metrics = [group["metrics"][i][()] for i in sorted(group["metrics"], key=int)]
    counts = Counts(**header["counts"])
    counters_of(model).go_on_from(counts, metrics, header["logs"])
    return counts


def _saved(model):
    return [*model.variables, *(model.optimizer.variables if model.optimizer is not None else ())]


def _unsaved(model):
    kept = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in kept]


def _replicated(model):
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return []
    return model.non_trainable_weights


def _signature(variable):
    return [variable.path, list(variable.shape), str(variable.dtype)]


def _check_fit(stored, present, path):
    for (_, shape, dtype), (name, here_shape, here_dtype) in zip(stored, present):  # noqa: B905
        if (shape, dtype) != (here_shape, here_dtype):
            raise InputError(
                f"{path} is of another model: {name} has shape {tuple(here_shape)} and dtype {here_dtype} here, "
                f"{tuple(shape)} and {dtype} in the file."
            )
    if len(stored) != len(present):
        extra, where = (stored, "the file") if len(stored) > len(present) else (present, "this model")
        name, shape, _ = extra[min(len(stored), len(present))]
        raise InputError(
            f"{path} is of another model: it has {len(stored)} variables, this one {len(present)}; "
            f"the first that only {where} has is {name}, of shape {tuple(shape)}."
        )


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
    group["header"] = np.frombuffer(json.dumps(snapshot.header).encode(), "uint8")
    for name, arrays in snapshot.arrays.items():
        subgroup = group.create_group(name)
        for i, array in arrays.items():
            # HDF5 has no bfloat16: such an array is stored as the bits that it is
            subgroup[str(i)] = array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _read_array(dataset, dtype):
    array = dataset[()]
    return array if array.dtype == dtype else array.view(dtype)
