"""Saves the whole state of training to a file, and restores it.

Keras's part of a file has weights and optimizers. The rest is in the group `global_step` of the same HDF5 file (in a `.keras`
archive, of its member `model.weights.h5`):

    header                  JSON: format, template, counters, logs, metrics, callback states (`callback_state.py`), place in the
                            data (`data_position.py`); name, shape and dtype of every variable of the state tree; the variables
                            that each optimizer updates; which `trainable` flags callbacks have changed
                            and which layers were frozen before (`trainable_flags.py`); whether the values are finite (`finite.py`)
    variables/<i>           variables that Keras's part does not have bit for bit, shape [replicas, ...]: seeds, RNN states, LoRA
                            adapters, values that differ between replicas, running metrics; the list `beside` in the header
                            has their names
    callbacks/<name>/<i>    arrays in callback states (the best weights of EarlyStopping)

The file contains no code: only JSON and plain arrays.
"""

import json
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.counting.counters import counters_of
from callbacks.counting.data_position import data_position_of
from callbacks.counting.resumed_epoch import resumed_epoch_of
from callbacks.counts import Counts
from callbacks.disk import format_1
from callbacks.disk.files import TRAILER_SIZE, Output
from callbacks.disk.hdf5_file import WEIGHTS_MEMBER, read_dataset
from callbacks.disk.hdf5_reader import load_weights
from callbacks.disk.hdf5_writer import Hdf5File
from callbacks.disk.stored_header import FORMAT, GROUP, header_of, open_group
from callbacks.errors import CheckpointReadError, InputError, one_line
from callbacks.model import callback_state
from callbacks.model.callback_state import CallbackStates
from callbacks.model.keras_private import KerasVariable, make_global_seed_generator
from callbacks.model.replicas import assign_components, of_all_ranks
from callbacks.model.state_tree import GLOBAL_SEEDS, StateTree
from callbacks.model.trainable_flags import trainable_flags_of
from callbacks.ranks import ranks
from callbacks.state.model_match import check_match
from callbacks.state.snapshot import KerasPart, Snapshot, SnapshotPlan, to_host

_MISMATCHES = (  # of Keras, h5py and TensorFlow, for a file that does not fit a model
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
)
_COMMENT = bytes(TRAILER_SIZE)  # the last record of an archive contains the size of the trailer after it


def take(
    model: keras.Model,
    plan: SnapshotPlan,
    states: CallbackStates,
    logs: Mapping[str, Any],
    metrics: Mapping[str, Any],
    earlier: KerasPart | None = None,
) -> Snapshot:
    """Takes a snapshot between two batches. All ranks call it after the same batch, and their differing values are gathered.

    Args:
        model: the model in training.
        plan: the plan of the snapshot.
        states: the current callback states.
        logs: the last logs that Keras reported, for the header.
        metrics: the newest value of each logged metric, for the header.
        earlier: an earlier reading to use as Keras's part of the file. Values that have changed since go beside it.

    Raises:
        RanksDiffer: if the ranks had different values at the snapshot before.
    """
    counts = counters_of(model).read()
    now, beside = plan.read_keras_part(), plan.read_beside()
    ranks().expect_equal(plan.shared_values(now, beside), f"At batch {counts.batch}")
    part = earlier if earlier is not None and earlier.plan is plan else now
    variables = plan.variables_of(part, beside)
    if part is earlier:
        beside |= plan.changed_since(earlier, now)
    header = plan.header | {
        "format": FORMAT,
        "counts": counts.to_json(),
        "logs": callback_state.as_json(dict(logs)),
        "metrics": callback_state.as_json(dict(metrics)),
        "callbacks": states.plain,
        "trainable": trainable_flags_of(model).changes(plan.tree),
        "frozen": trainable_flags_of(model).frozen,
        "hook": states.hook,
        "stopped": states.has_stopped,
    }
    beside = of_all_ranks(beside, plan.header["metrics_variables"])
    return Snapshot(counts, header, part.groups, beside, states.arrays, plan.members(), variables)


def write(snapshot: Snapshot, output: Output) -> None:
    """Writes a snapshot to a file that stock Keras loads. It needs neither the model nor Keras, and runs in any thread."""
    content = Hdf5File()
    for each in snapshot.groups:
        if each.values or each.name:
            group = content.group(f"{each.path}/vars" if each.path else "vars", {"name": each.name} if each.name else {})
            for key, value in each.values.items():
                content.put(group, key, to_host(value))
    _put_state(content, snapshot)
    if snapshot.members is None:
        content.write(output.write)
        return
    with zipfile.ZipFile(_WithoutComment(output), "w") as archive:  # type: ignore[call-overload]  # it calls no other methods
        for name, member in snapshot.members.items():
            archive.writestr(name, member)
        with archive.open(WEIGHTS_MEMBER, "w", force_zip64=True) as file:
            content.write(file.write)
        archive.comment = _COMMENT


class _WithoutComment:
    """The output of an archive, without the archive's comment: the trailer takes its place."""

    def __init__(self, output: Output):
        self._output = output
        self.tell, self.flush = output.tell, output.flush

    def write(self, data: Any) -> int:
        return len(data) if data is _COMMENT else self._output.write(data)


@dataclass(frozen=True)
class StoredState:
    """The state in a file, other than Keras's part.

    Args:
        path: the path of the file, which only the chief reads.
        header: the header.
        beside: name of a variable -> values, shape [replicas, ...]. In format 1 the names are indices in lists.
        arrays: name of a callback state -> arrays.
    """

    path: str
    header: dict[str, Any]
    beside: dict[str, np.ndarray]
    arrays: dict[str, list[np.ndarray]]

    @property
    def counts(self) -> Counts:
        """The counters."""
        return Counts(**self.header["counts"])

    @property
    def callback_states(self) -> CallbackStates:
        """The callback states."""
        hook = self.header.get("hook", "on_train_batch_end")  # missing in the first files of format 2
        return CallbackStates(self.header["callbacks"], self.arrays, hook, self.header["stopped"])

    def assign_to(self, model: keras.Model) -> None:
        """Assigns all variables of the checkpoint to a model. If the file does not match, the model is unchanged.

        Args:
            model: a compiled model. If an optimizer was built at the save and is not built yet, it is built for the same variables.

        Raises:
            NotBuilt: if the model lacks variables, which a callback or its first batch may create.
            InputError: if the file is of another model. The message names the first variable that differs.
            CheckpointReadError: if the disk fails. The model is unchanged.
        """
        if any(name.startswith(GLOBAL_SEEDS) for name in self.beside):
            make_global_seed_generator()
        tree = self._prepare(model)
        ranks().on_chief(lambda: self._load_keras_part(model))
        ranks().broadcast_variables([v for v in tree.variables.values() if isinstance(v, KerasVariable)])
        self._assign(model, tree, set(tree.variables))
        trainable_flags_of(model).restore(self.header.get("trainable", {}))

    def fits(self, model: keras.Model) -> bool:
        """Returns whether a model has the variables of the checkpoint. If its layers have, optimizers are built as at the save."""
        try:
            if self.header["format"] == FORMAT:
                check_match(self.header, StateTree(model), self.path, with_optimizers=False)
            self._prepare(model)
        except InputError:
            return False
        return True

    def assign_weights(self, model: keras.Model) -> None:
        """Assigns only the weights of the checkpoint to a model. Optimizers, seeds and counters are unchanged.

        Args:
            model: a built model.

        Raises:
            InputError: if the file is of another model. The message names the first variable that differs.
            CheckpointReadError: if the disk fails. The model is unchanged.
        """
        tree, beside = StateTree(model), self.header["format"] == FORMAT
        if beside:
            check_match(self.header, tree, self.path, with_optimizers=False)
        ranks().on_chief(lambda: self._load_keras_part(model, skip=tree.optimizers.values()))
        left_out, of_optimizers = tree.metrics | tree.seeds, tuple(f"{name}." for name in tree.optimizers)
        weights = {name: v for name, v in tree.variables.items() if name not in left_out and not name.startswith(of_optimizers)}
        ranks().broadcast_variables([v for v in weights.values() if isinstance(v, KerasVariable)])  # in the same order on all ranks
        if beside:
            self._assign(model, tree, set(weights))

    def assign_metrics(self, model: keras.Model) -> None:
        """Restores the running metrics of a model, which `fit` resets at the beginning of an epoch."""
        tree = StateTree(model)
        self._assign(model, tree, set(tree.metrics))

    def resume_epoch(self, model: keras.Model) -> None:
        """Restores the counters and the place in the data, so that the next `fit` finishes the epoch of the checkpoint."""
        resumed_epoch_of(model).resume(self.counts, self.header["logs"], lambda: self.assign_metrics(model), self.path)
        data_position_of(model).resume(self.header.get("data"), self.counts, self.path)

    def _assign(self, model: keras.Model, tree: StateTree, names: set[str]) -> None:
        beside = self.beside if self.header["format"] == FORMAT else format_1.named(self.beside, tree, model)
        with model.distribute_strategy.scope():
            for name, value in beside.items():
                if name in names and tf.TensorShape(tree.variables[name].shape).is_compatible_with(value.shape[1:]):
                    assign_components(model.distribute_strategy, tree.variables[name], value)

    def _prepare(self, model: keras.Model) -> StateTree:
        """Builds optimizers as at the save, and compares the model with the file."""
        if self.header["format"] != FORMAT:
            format_1.prepare(model, self.header["variables"], self.path)
            return StateTree(model)
        tree = StateTree(model)
        for name, stored in self.header["optimizers"].items():
            optimizer = tree.optimizers.get(name)
            if optimizer is None or optimizer.built or not stored["built"]:
                continue
            updates = set(stored["updates"])  # no variable twice, which would cost memory each time
            if len(updates) == len(stored["updates"]) and updates <= tree.variables.keys():
                with model.distribute_strategy.scope():
                    optimizer.build([tree.variables[each] for each in stored["updates"]])
                tree = StateTree(model)
        check_match(self.header, tree, self.path, with_optimizers=model.compiled or bool(tree.optimizers))
        return tree

    def _load_keras_part(self, model: keras.Model, skip: Iterable[keras.optimizers.Optimizer] = ()) -> None:
        with warnings.catch_warnings():
            # The optimizer was not built at the save, or is not built now.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            try:
                load_weights(model, self.path, skip)
            except OSError as error:
                raise CheckpointReadError.of(self.path, error) from None
            except _MISMATCHES as error:
                raise InputError(f"{self.path} is of another model: {one_line(error)}") from None


def read_state(path: str) -> StoredState:
    """Reads the state of a verified checkpoint. The chief reads the file, and all ranks receive the state.

    Raises:
        CheckpointReadError: if the disk fails.
        InputError: if this package has not written the file.
    """

    def read_or_refuse():
        try:
            return read()
        except InputError:
            raise
        except Exception as error:  # h5py, zipfile and json raise errors of many classes for a file that this code did not write
            if isinstance(error, OSError) and error.errno:
                raise CheckpointReadError.of(path, error) from None
            raise InputError(f"Cannot read the state in {path}: {one_line(error)}") from None

    def read():
        with open_group(path) as group:
            header = header_of(group, path)
            if header["format"] == FORMAT:
                stored, types = group["variables"], header["variables"]
                values = {name: _typed(read_dataset(stored, str(i)), types[name][1]) for i, name in enumerate(header["beside"])}
                _check_values(values, types)
            else:
                values = format_1.values(group)
            arrays = {
                name: [read_dataset(entries, each) for each in sorted(entries, key=int)]
                for name, entries in group["callbacks"].items()
            }
            stored_state = StoredState(path, header, values, arrays)
            for name in stored_state.callback_states.plain:
                stored_state.callback_states.of(name)
            return [header, values, arrays]

    header, beside, arrays = ranks().on_chief(read_or_refuse)
    return StoredState(path, header, beside, arrays)


def restore(model: keras.Model, path: str) -> StoredState:
    """Restores the whole state of a checkpoint, including the counters.

    Args:
        model: a built and compiled model.
        path: the path of a verified file.

    Raises:
        InputError: if the file is of another model.
        CheckpointReadError: if the disk fails. The model is unchanged.
    """
    stored = read_state(path)
    stored.assign_to(model)
    stored.resume_epoch(model)
    return stored


def _stack(parts: list[Any]) -> np.ndarray:
    return np.asarray(parts[0])[np.newaxis] if len(parts) == 1 else np.stack(parts)  # avoids a copy of one large array


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """Restores the dtype of an array that returns with another one: as bytes (float8), or as integers (qint32)."""
    of = tf.as_dtype(dtype)
    return array.view(of.as_numpy_dtype) if array.dtype.kind == "V" or of.is_quantized else array


def _check_values(values: Mapping[str, np.ndarray], types: Mapping[str, list[Any]]) -> None:
    """Checks that arrays have the shapes and dtypes in the header, which are compared with those of the model.

    Raises:
        ValueError: if an array has not.
    """
    for name, value in values.items():
        shape, dtype, _ = types[name]
        has_replicas, has_type = value.ndim > 0 and len(value) > 0, tf.as_dtype(value.dtype).name == dtype
        if not (has_replicas and has_type and tf.TensorShape(shape).is_compatible_with(value.shape[1:])):
            raise ValueError(f"the value of {name} has the shape {value.shape} and the dtype {value.dtype}")


def _put_state(content: Hdf5File, snapshot: Snapshot) -> None:
    group = content.group(GROUP)
    values = {name: _stack([to_host(part) for part in parts]) for name, parts in snapshot.beside.items()}
    header = snapshot.header | {"beside": list(values)}
    content.put(group, "header", np.frombuffer(json.dumps(header).encode(), "uint8"))
    variables = content.group(f"{GROUP}/variables")
    for i, value in enumerate(values.values()):
        content.put(variables, str(i), value)
    content.group(f"{GROUP}/callbacks")
    for name, arrays in snapshot.callbacks.items():
        entries = content.group(f"{GROUP}/callbacks/{name}")
        for i, array in enumerate(arrays):
            content.put(entries, str(i), np.asarray(array))
