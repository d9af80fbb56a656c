"""Snapshots of the training state, and their copy from the device to the host.

A snapshot is taken between two batches and holds references to tensors. When training next writes a variable, TensorFlow
allocates new memory for it and leaves the old memory to the snapshot. New memory is expensive, so a thread copies the values to
memory that it keeps from save to save (`HostMemory`), while the next batch computes its gradients, and drops each reference. A
value that training overwrites before it is copied stays in the variable's old memory. Either way, each value is kept once.
"""

import functools
import mmap
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.counts import Counts
from callbacks.model.keras_private import KerasVariable, array_view, constant_learning_rate, read_variables, updated_variables
from callbacks.model.replicas import components
from callbacks.model.state_tree import StateTree, Variable, shape_of
from callbacks.ranks import ranks
from callbacks.state.host_memory import HostMemory
from callbacks.state.keras_part import Group, plan_of_keras_part
from callbacks.state.learning_rates import rates_of_fit

_ALIGNMENT = 64  # bytes


@dataclass
class Snapshot:
    """The state of training between two batches.

    Args:
        counts: the counters.
        header: what the file stores as JSON.
        groups: Keras's part of the file.
        beside: the values that Keras's part does not hold bit for bit, one for each replica, by the variable's name.
        callbacks: the arrays of each callback state, by the state's name.
        members: the contents of further members of a `.keras` archive, by name. None for a `.weights.h5` file.
        variables: the variable that each tensor in host memory was read from, by the tensor's `id`.
    """

    counts: Counts
    header: dict[str, Any]
    groups: list[Group]
    beside: dict[str, list[Any]]
    callbacks: dict[str, list[np.ndarray]]
    members: dict[str, bytes] | None
    variables: dict[int, tf.Variable]

    def values(self) -> Iterable[tuple[dict | list, Any]]:
        """Yields the container and the key of each value."""
        for group in self.groups:
            yield from ((group.values, key) for key in group.values)
        for parts in self.beside.values():
            yield from ((parts, i) for i in range(len(parts)))

    def tensors(self) -> Iterable[tf.Tensor]:
        """Yields the values that are still on their devices."""
        return (container[key] for container, key in self.values() if isinstance(container[key], tf.Tensor))

    @property
    def size(self) -> int:
        """Bytes of all values: approximately the size of the file."""
        return sum(size_of(container[key]) for container, key in self.values())

    def _as_training_writes(self) -> list[tuple[dict | list, Any]]:
        """Returns the values in the order in which the next batch writes them: the last layer and its optimizer variables first."""
        layers = [(group.values, key) for group in self.groups if not group.is_of_optimizer for key in group.values]
        optimizers = [[(group.values, key) for key in group.values] for group in self.groups if group.is_of_optimizer]
        ranked = [(place / len(each), value) for each in (layers, *optimizers) for place, value in enumerate(each)]
        ranked.sort(key=operator.itemgetter(0), reverse=True)
        return [value for _, value in ranked] + [(parts, i) for parts in self.beside.values() for i in range(len(parts))]

    def fetch(self, memory: HostMemory) -> None:
        """Copies each value to host memory and drops the reference to its tensor."""
        memory.begin(memory_for({id(tensor): tensor for tensor in self.tensors()}.values()))
        begin, copies = 0, {}
        for container, key in self._as_training_writes():
            tensor = container[key]
            if not isinstance(tensor, tf.Tensor):
                continue
            if id(tensor) not in copies:  # a wrapper of an optimizer saves the same variables again
                end = begin + _aligned(size_of(tensor))
                if self._has_moved(tensor):
                    memory.give_back(begin, end)
                    copies[id(tensor)] = tensor
                else:
                    copies[id(tensor)] = memory.copy(array_view(tensor), begin)
                begin = end
            container[key] = copies[id(tensor)]

    def release(self, memory: HostMemory) -> None:
        """Drops all values and allocates the pages for the next snapshot."""
        self.groups.clear()
        self.beside.clear()
        memory.provide()

    def _has_moved(self, tensor):
        """Returns whether the variable has new memory by now, so that only this snapshot holds the old one."""
        variable = self.variables.get(id(tensor))
        if variable is None or size_of(tensor) < mmap.PAGESIZE:
            return False
        try:
            (now,) = read_variables([variable.handle], [variable.dtype.as_datatype_enum])
        except tf.errors.OpError:  # the variable is gone
            return True
        return not _is_same_memory(tensor, now)


def to_host(value: Any) -> Any:
    """Returns a tensor's memory as an array; anything else as it is."""
    return array_view(value) if isinstance(value, tf.Tensor) else value


def memory_for(values: Iterable[tf.Tensor | tf.Variable]) -> int:
    """Returns the bytes of `HostMemory` that copies of these values need."""
    return sum(_aligned(size_of(value)) for value in values)


def size_of(value: Any) -> int:
    """Returns the bytes of an array, a tensor or one of TensorFlow's variables."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.nbytes
    count = value.shape.num_elements()
    return (int(tf.size(value)) if count is None else count) * value.dtype.size  # None: of a variable whose shape may change


@dataclass(frozen=True)
class KerasPart:
    """The content of Keras's part of the file at one instant.

    Args:
        plan: the plan that read it.
        tensors: the value of each variable, by the variable's `id`.
        groups: the groups of the file, with their values.
    """

    plan: "SnapshotPlan"
    tensors: dict[int, tf.Tensor]
    groups: list[Group]


class SnapshotPlan:
    """The variables that a snapshot reads and their places in the file; valid until the model's structure changes.

    Args:
        model: the model.
        is_archive: whether the file is a `.keras` archive.
        seeds: passed to the state tree.

    Attributes:
        tree: the state tree of the model.
        header: the part of the file's header that describes the variables.
    """

    def __init__(self, model: keras.Model, is_archive: bool, seeds: keras.random.SeedGenerator | None = None):
        self._model, self._is_archive, self._seeds = model, is_archive, seeds
        self.tree = tree = StateTree(model, seeds)
        self._trainable = _are_trainable(tree)
        self._names = {id(variable): name for name, variable in tree.variables.items()}
        self._of_keras = plan_of_keras_part(model, self._names)
        self._in_keras_part = {id(v): v for v in self._of_keras.variables()}
        are_loaded = self._in_keras_part.keys() - {id(v) for v in self._of_keras.variables_to_repeat()}
        self._shared = _shared(tree)
        strategy = model.distribute_strategy
        may_differ = strategy.num_replicas_in_sync * ranks().size > 1
        self._beside = {
            name: variable
            for name, variable in tree.variables.items()
            if id(variable) not in are_loaded or (may_differ and name not in self._shared)
        }
        self._keras_part_reader = VariableReader([components(strategy, v)[:1] for v in self._in_keras_part.values()])
        self._beside_reader = VariableReader([components(strategy, v) for v in self._beside.values()])
        self.header: dict[str, Any] = {
            "variables": {
                name: [shape_of(v), tf.as_dtype(v.dtype).name, v.path if isinstance(v, KerasVariable) else v.name]
                for name, v in tree.variables.items()
            },
            "metrics_variables": sorted(tree.metrics),
            "learning_rates": rates_of_fit(model, tree),
            "optimizers": {name: self._describe(optimizer) for name, optimizer in tree.optimizers.items()},
        }
        self._settings: tuple[list[float], dict[str, bytes]] | None = None

    def is_current(self) -> bool:
        """Returns whether the plan still fits the model."""
        if not self.tree.is_current():
            tree = StateTree(self._model, self._seeds)
            if not tree.is_like(self.tree):
                return False
            self.tree, self._settings = tree, None
        return self._trainable == _are_trainable(self.tree)

    def members(self) -> dict[str, bytes] | None:
        """Returns the contents of further members of a `.keras` archive, by name; None for a `.weights.h5` file.

        The model's configuration is serialized again if an attribute or a learning rate has changed since the last save.
        """
        if not self._is_archive:
            return None
        variables = map(constant_learning_rate, self.tree.optimizers.values())
        rates = [float(tf.convert_to_tensor(rate)) for rate in variables if rate is not None]
        if self._settings is None or self._settings[0] != rates:
            self._settings = rates, self._of_keras.members()
        return self._settings[1]

    @functools.cached_property
    def layer_variables(self) -> dict[str, list[Any]]:
        """Name -> shape, dtype and path of each variable that neither an optimizer, a metric nor a seed owns."""
        others = self.tree.metrics | self.tree.seeds
        of_optimizers = tuple(f"{name}." for name in self.tree.optimizers)
        return {
            name: of for name, of in self.header["variables"].items() if name not in others and not name.startswith(of_optimizers)
        }

    @property
    def memory(self) -> int:
        """Bytes of `HostMemory` that a snapshot needs."""
        return memory_for(part for reader in (self._keras_part_reader, self._beside_reader) for part in reader.variables)

    def read_keras_part(self) -> KerasPart:
        """Reads the current values of Keras's part; objects that compute arrays for the file compute them again."""
        tensors = dict(zip(self._in_keras_part, (first for (first,) in self._keras_part_reader.read()), strict=True))
        return KerasPart(self, tensors, self._of_keras.read(tensors))

    def read_beside(self) -> dict[str, list[tf.Tensor]]:
        """Reads, for each replica, the variables that Keras's part does not hold bit for bit."""
        return dict(zip(self._beside, self._beside_reader.read(), strict=True))

    def variables_of(self, part: KerasPart, beside: Mapping[str, Sequence[tf.Tensor]]) -> dict[int, tf.Variable]:
        """Returns the variable that each tensor in host memory was read from, by the tensor's `id`."""
        tensors = [*part.tensors.values(), *(tensor for parts in beside.values() for tensor in parts)]
        variables = [*self._keras_part_reader.variables, *self._beside_reader.variables]
        return {id(tensor): v for tensor, v in zip(tensors, variables, strict=True) if _is_on_host(tensor)}

    def shared_values(self, part: KerasPart, beside: Mapping[str, Sequence[tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Returns the values that must be equal on all replicas: trainable and optimizer variables."""
        in_keras_part = {self._names.get(key, ""): tensor for key, tensor in part.tensors.items()}
        return {name: in_keras_part[name] if name in in_keras_part else beside[name][0] for name in self._shared}

    def changed_since(self, earlier: KerasPart, now: KerasPart) -> dict[str, list[tf.Tensor]]:
        """Returns the new values of the variables of Keras's part that were written between two readings."""
        return {
            self._names[key]: [tensor]
            for key, tensor in now.tensors.items()
            if key in self._names and self._names[key] not in self._beside and not _is_same(earlier.tensors[key], tensor)
        }

    def _describe(self, optimizer):
        updated = [self._names[id(v)] for v in updated_variables(optimizer) if id(v) in self._names]
        return {"built": bool(optimizer.built), "updates": updated}


def _are_trainable(tree: StateTree) -> list[bool]:
    return [bool(variable.trainable) for variable in tree.variables.values()]


def _shared(tree: StateTree) -> dict[str, Variable]:
    """Returns the variables that all replicas update in the same way."""
    of_optimizers = {id(v) for optimizer in tree.optimizers.values() for v in optimizer.variables}
    return {
        name: v for name, v in tree.variables.items() if id(v) in of_optimizers or (isinstance(v, KerasVariable) and v.trainable)
    }


class VariableReader:
    """Reads many variables at one instant, with one call per device.

    Args:
        variables: the replicas' components of each variable.
    """

    def __init__(self, variables: Iterable[Sequence[tf.Variable]]):
        variables = list(variables)
        self._counts = [len(parts) for parts in variables]
        self.variables = flat = [part for parts in variables for part in parts]
        places: dict[str, list[int]] = {}
        for place, part in enumerate(flat):
            places.setdefault(part.device, []).append(place)
        self._devices = [
            (of_device, [flat[i].handle for i in of_device], [flat[i].dtype.as_datatype_enum for i in of_device])
            for of_device in places.values()
        ]

    def read(self) -> list[list[tf.Tensor]]:
        """Returns the values, in the order and shape of `variables`."""
        found: dict[int, tf.Tensor] = {}
        for places, handles, types in self._devices:
            found |= dict(zip(places, read_variables(handles, types), strict=True))
        values = iter(found[place] for place in range(len(found)))
        return [[next(values) for _ in range(count)] for count in self._counts]


def _is_same(before: Any, after: Any) -> bool:
    """Returns whether a variable was not written between two readings: both then share their memory."""
    if _is_on_host(before) and before.shape.rank:
        return _is_same_memory(before, after)
    return bool(tf.reduce_all(tf.equal(before, after)))


def _is_same_memory(one: tf.Tensor, other: tf.Tensor) -> bool:
    return array_view(one).ctypes.data == array_view(other).ctypes.data


def _is_on_host(tensor: tf.Tensor) -> bool:
    return ":CPU:" in tensor.device


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
