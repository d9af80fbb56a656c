"""The state of training at one instant, and how it leaves the device.

A snapshot is taken between two batches, by references: TensorFlow moves a variable to new memory when it is next written,
and leaves the old memory to the snapshot. That is dear, since the new memory is fresh. So a thread copies the values into
memory of our own while the next batch computes its gradients, and lets each reference go. A value that training has written
before its turn came stays where it is. So each value is kept once: in memory of our own, or where the variable was.
"""

import mmap
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.counters import Counts
from callbacks.host_memory import HostMemory
from callbacks.keras_part import Group, plan_of_keras_part
from callbacks.keras_private import KerasVariable, array_view, constant_learning_rate, read_variables, updated_variables
from callbacks.ranks import ranks
from callbacks.replicas import components
from callbacks.state_tree import StateTree, Variable

_ALIGNMENT = 64  # bytes


@dataclass
class Snapshot:
    """The state of training between two batches.

    Args:
        counts: the counters.
        header: what the file stores as JSON.
        groups: Keras's part of the file.
        beside: name of a variable -> what each replica has of it, where Keras's part does not hold that bit for bit.
        callbacks: name of a callback's state -> arrays.
        members: further members of a `.keras` archive: name -> content. None for a `.weights.h5` file.
        variables: the variable that a tensor in the host's memory was read from, by the tensor's `id`.
    """

    counts: Counts
    header: dict[str, Any]
    groups: list[Group]
    beside: dict[str, list[Any]]
    callbacks: dict[str, list[np.ndarray]]
    members: dict[str, bytes] | None
    variables: dict[int, tf.Variable]

    def values(self) -> Iterable[tuple[dict | list, Any]]:
        """Yields where each value is kept, a container and a key of it."""
        for group in self.groups:
            yield from ((group.values, key) for key in group.values)
        for parts in self.beside.values():
            yield from ((parts, i) for i in range(len(parts)))

    def tensors(self) -> Iterable[tf.Tensor]:
        """Yields the values that are still on their devices."""
        return (container[key] for container, key in self.values() if isinstance(container[key], tf.Tensor))

    @property
    def size(self) -> int:
        """Bytes of all values, near enough to the size of the file."""
        return sum(_size(container[key]) for container, key in self.values())

    def _as_training_writes(self) -> list[tuple[dict | list, Any]]:
        """The values in the order in which the next batch will write them: the last layer first, with its optimizer's variables."""
        layers = [(group.values, key) for group in self.groups if not group.is_of_optimizer for key in group.values]
        optimizers = [[(group.values, key) for key in group.values] for group in self.groups if group.is_of_optimizer]
        ranked = [(place / len(each), value) for each in (layers, *optimizers) for place, value in enumerate(each)]
        ranked.sort(key=operator.itemgetter(0), reverse=True)
        return [value for _, value in ranked] + [(parts, i) for parts in self.beside.values() for i in range(len(parts))]

    def fetch(self, memory: HostMemory) -> None:
        """Copies the values into memory of our own, and lets each tensor go as soon as its value is there."""
        memory.begin(memory_for({id(tensor): tensor for tensor in self.tensors()}.values()))
        begin, copies = 0, {}
        for container, key in self._as_training_writes():
            tensor = container[key]
            if not isinstance(tensor, tf.Tensor):
                continue
            if id(tensor) not in copies:  # what wraps an optimizer saves its variables once more
                end = begin + _aligned(_size(tensor))
                if self._has_moved(tensor):
                    memory.give_back(begin, end)
                    copies[id(tensor)] = tensor
                else:
                    copies[id(tensor)] = memory.copy(array_view(tensor), begin)
                begin = end
            container[key] = copies[id(tensor)]

    def release(self, memory: HostMemory) -> None:
        """Lets all values go, and has the memory provided that the next snapshot takes."""
        self.groups.clear()
        self.beside.clear()
        memory.provide()

    def _has_moved(self, tensor):
        """Whether the variable has other memory by now, so that nobody but this snapshot holds the value's."""
        variable = self.variables.get(id(tensor))
        if variable is None or _size(tensor) < mmap.PAGESIZE:
            return False
        try:
            (now,) = read_variables([variable.handle], [variable.dtype.as_datatype_enum])
        except tf.errors.OpError:  # the variable is gone
            return True
        return not _is_same_memory(tensor, now)


def memory_for(values: Iterable[tf.Tensor | tf.Variable]) -> int:
    """Returns the bytes of `HostMemory` that copies of these values take."""
    return sum(_aligned(_size(value)) for value in values)


@dataclass(frozen=True)
class KerasPart:
    """What Keras's part of the file holds at an instant.

    Args:
        plan: what it was read by.
        tensors: the value of each variable, by the variable's `id`.
        groups: the groups of the file with their values.
    """

    plan: "SnapshotPlan"
    tensors: dict[int, tf.Tensor]
    groups: list[Group]


class SnapshotPlan:
    """What a snapshot of a model reads, and where each value goes; good until the model's structure changes.

    Args:
        model: the model.
        is_archive: whether a `.keras` archive is written.
        seeds: for the state tree.

    Attributes:
        header: what the file's header says of the variables.
    """

    def __init__(self, model: keras.Model, is_archive: bool, seeds: keras.random.SeedGenerator | None = None):
        self._model, self._is_archive, self._seeds = model, is_archive, seeds
        self._tree = tree = StateTree(model, seeds)
        self._trainable = _are_trainable(tree)
        self._names = {id(variable): name for name, variable in tree.variables.items()}
        self._of_keras = plan_of_keras_part(model)
        self._in_keras_part = {id(v): v for v in self._of_keras.variables()}
        self._shared = _shared(tree)
        strategy = model.distribute_strategy
        may_differ = strategy.num_replicas_in_sync * ranks().size > 1
        self._beside = {
            name: variable
            for name, variable in tree.variables.items()
            if id(variable) not in self._in_keras_part or (may_differ and name not in self._shared)
        }
        self._keras_part_reader = VariableReader([components(strategy, v)[:1] for v in self._in_keras_part.values()])
        self._beside_reader = VariableReader([components(strategy, v) for v in self._beside.values()])
        self.header = {
            "variables": {
                name: [list(v.shape), tf.as_dtype(v.dtype).name, getattr(v, "path", v.name)] for name, v in tree.variables.items()
            },
            "metrics_variables": sorted(tree.metrics),
            "optimizers": {name: self._describe(optimizer) for name, optimizer in tree.optimizers.items()},
        }
        self._settings: tuple[list[float], dict[str, bytes]] | None = None

    def is_current(self) -> bool:
        """Whether the plan is good for the model as it is now."""
        if not self._tree.is_current():
            tree = StateTree(self._model, self._seeds)
            if not tree.is_like(self._tree):
                return False
            self._tree, self._settings = tree, None
        return self._trainable == _are_trainable(self._tree)

    def members(self) -> dict[str, bytes] | None:
        """Returns the further members of a `.keras` archive, name -> content; None for a `.weights.h5` file.

        The model's settings are written as JSON again where an attribute or a learning rate has changed since the last save.
        """
        if not self._is_archive:
            return None
        variables = map(constant_learning_rate, self._tree.optimizers.values())
        rates = [float(tf.convert_to_tensor(rate)) for rate in variables if rate is not None]
        if self._settings is None or self._settings[0] != rates:
            self._settings = rates, self._of_keras.members()
        return self._settings[1]

    @property
    def memory(self) -> int:
        """Bytes of `HostMemory` that a snapshot takes."""
        return memory_for(part for reader in (self._keras_part_reader, self._beside_reader) for part in reader.variables)

    def read_keras_part(self) -> KerasPart:
        """Reads what Keras's part of the file holds now; only objects that make arrays of their own are asked again."""
        tensors = dict(zip(self._in_keras_part, (first for (first,) in self._keras_part_reader.read()), strict=True))
        return KerasPart(self, tensors, self._of_keras.read(tensors))

    def read_beside(self) -> dict[str, list[tf.Tensor]]:
        """Reads what each replica has now of the variables that Keras's part does not hold bit for bit."""
        return dict(zip(self._beside, self._beside_reader.read(), strict=True))

    def variables_of(self, part: KerasPart, beside: Mapping[str, Sequence[tf.Tensor]]) -> dict[int, tf.Variable]:
        """Returns the variable that each tensor in the host's memory was read from, by the tensor's `id`."""
        tensors = [*part.tensors.values(), *(tensor for parts in beside.values() for tensor in parts)]
        variables = [*self._keras_part_reader.variables, *self._beside_reader.variables]
        return {id(tensor): v for tensor, v in zip(tensors, variables, strict=True) if _is_on_host(tensor)}

    def shared_values(self, part: KerasPart, beside: Mapping[str, Sequence[tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Returns the values that have to be equal on all replicas: of trainable variables and of optimizers."""
        in_keras_part = {self._names.get(key, ""): tensor for key, tensor in part.tensors.items()}
        return {name: in_keras_part[name] if name in in_keras_part else beside[name][0] for name in self._shared}

    def changed_since(self, earlier: KerasPart, now: KerasPart) -> dict[str, list[tf.Tensor]]:
        """Returns the variables of Keras's part that were written between two readings, with their values now."""
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
    """The variables that every replica updates alike."""
    of_optimizers = {id(v) for optimizer in tree.optimizers.values() for v in optimizer.variables}
    return {
        name: v for name, v in tree.variables.items() if id(v) in of_optimizers or (isinstance(v, KerasVariable) and v.trainable)
    }


class VariableReader:
    """Reads the values that many variables have at one instant, with one call for each device.

    Args:
        variables: for each variable, what each replica of interest has of it.
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
    """Whether a variable was not written between two readings: then both are the same memory."""
    if _is_on_host(before) and before.shape.rank:
        return _is_same_memory(before, after)
    return bool(tf.reduce_all(tf.equal(before, after)))


def _is_same_memory(one: tf.Tensor, other: tf.Tensor) -> bool:
    return array_view(one).ctypes.data == array_view(other).ctypes.data


def _is_on_host(tensor: tf.Tensor) -> bool:
    return ":CPU:" in tensor.device


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, (np.ndarray, np.generic)) else value.shape.num_elements() * value.dtype.size
