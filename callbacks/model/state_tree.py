"""The state tree: all variables reachable from a model, by name.

A name is the shortest path of attributes and items from the model: `_layers[0]._kernel`, `d_optimizer._momentums[3]`. Another
process that builds the same model finds the same names; Keras's own (`dense_7/kernel`) depend on what was built before.
"""

import functools
import operator
import sys
import types
from collections import deque
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from callbacks.model.keras_private import (
    BOOKKEEPING,
    AutoTrackable,
    KerasSaveable,
    KerasVariable,
    global_seed_generator,
    native_variable,
)

Variable: TypeAlias = keras.Variable | tf.Variable
VARIABLES = (KerasVariable, tf.Variable)

# Objects of these libraries are not searched unless `_SEARCHED` names their class; objects of the user's own classes are.
_LIBRARIES = {*sys.stdlib_module_names, "keras", "tensorflow", "numpy", "h5py", __name__.partition(".")[0]}
_SEARCHED = (
    KerasSaveable,
    keras.random.SeedGenerator,
    AutoTrackable,
    tf.train.ExponentialMovingAverage,
    types.SimpleNamespace,
)
_SEQUENCES = (list, tuple, deque)
_NOT_NUMBERS = (tf.string, tf.resource, tf.variant)
GLOBAL_SEEDS = "keras.random"  # the name of the generator that Keras draws from where no seed is given


def shape_of(variable: Variable) -> list[int | None] | None:
    """Returns the shape of a variable, with None for a size that may change; None if the rank may change."""
    shape = tf.TensorShape(variable.shape)
    return None if shape.rank is None else shape.as_list()


class _Kind(Enum):
    OTHER = 0
    VARIABLE = 1
    SEQUENCE = 2
    MAPPING = 3
    OBJECT = 4
    OPTIMIZER = 5


_CONTAINERS = (_Kind.SEQUENCE, _Kind.MAPPING)
_CLASS = operator.attrgetter("__class__")  # `type` would return TensorFlow's wrappers of tuples and dicts


class StateTree:
    """The variables of a model and the objects that own them, at the time when the tree was built.

    Args:
        model: the root.
        seeds: the generator that Keras uses where no seed is given; by default the current one. A compiled train step keeps
            the generator that it was traced with, even after `clear_session`.
    """

    def __init__(self, model: keras.Model, seeds: keras.random.SeedGenerator | None = None):
        # One entry per visited object, the model first. Parallel lists are faster than one object each, and a save waits for this.
        self._values: list[Any] = []
        self._kinds: list[_Kind] = []
        self._parents: list[int] = []
        self._labels: list[str] = []
        self._seen: set[int] = set()
        self._optimizers: list[tuple[Any, int, str]] = []
        self._visited = 0
        self._contents: list[tuple[Any, tuple]] = []  # of attributes, lists and dicts
        self._empty: list[Any] = []  # lists and dicts without content
        self._add(model, _Kind.OBJECT, -1, "")
        self._seeds = seeds or global_seed_generator()
        if self._seeds is not None:
            self._add(self._seeds, _Kind.OBJECT, -1, GLOBAL_SEEDS)
        self._visit()
        # Optimizers come last: the variables that they update get the names of their layers.
        for optimizer, parent, label in self._optimizers:  # grows meanwhile
            self._append(optimizer, _Kind.OBJECT, parent, label)
            self._visit()

    def is_current(self) -> bool:
        """Returns whether a new tree would be the same. If in doubt it returns False, which costs one new tree."""
        if any(self._empty) or (self._seeds is None and global_seed_generator() is not None):
            return False
        for container, contents in self._contents:
            if isinstance(container, _SEQUENCES):
                now: Collection[Any] = container
            else:
                now = (container if isinstance(container, dict) else _attributes(container)).values()
            if len(now) != len(contents) or not all(map(operator.is_, now, contents)):
                return False
        return True

    def is_like(self, other: "StateTree") -> bool:
        """Returns whether the other tree has the same variables, owned by the same objects."""
        return self._identity() == other._identity()

    def _identity(self) -> list[int]:
        return [id(value) for value, kind in zip(self._values, self._kinds, strict=True) if kind not in _CONTAINERS]

    @functools.cached_property
    def variables(self) -> dict[str, Variable]:
        """The variables by name. Each appears once, under its shortest name."""
        return {self._name(place): self._values[place] for place in self._variable_places}

    @functools.cached_property
    def metrics(self) -> frozenset[str]:
        """The names of the variables that belong to metrics."""
        return frozenset(self._name(place) for place in self._variable_places if self._is_part_of(place, keras.metrics.Metric))

    @functools.cached_property
    def seeds(self) -> frozenset[str]:
        """The names of the variables that belong to random generators."""
        kinds = (keras.random.SeedGenerator, tf.random.Generator)
        return frozenset(self._name(at) for at in self._variable_places if any(self._is_part_of(at, kind) for kind in kinds))

    @functools.cached_property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """The optimizers by name, a wrapper before the optimizers that it wraps."""
        return {self._name(place): self._values[place] for place in self._places_of(keras.optimizers.Optimizer)}

    @functools.cached_property
    def outer_optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The optimizers that no other optimizer wraps."""
        kind = keras.optimizers.Optimizer
        return [self._values[place] for place in self._places_of(kind) if not self._is_part_of(place, kind)]

    @functools.cached_property
    def layers(self) -> dict[str, keras.Layer]:
        """Name -> layer: the layers of the model, and the model itself under an empty name."""
        return {self._name(place): self._values[place] for place in self._places_of(keras.Layer)}

    @property
    def is_built(self) -> bool:
        """Whether every layer has its variables."""
        return all(self._values[place].built for place in self._places_of(keras.Layer))

    def _visit(self) -> None:
        while self._visited < len(self._values):
            place = self._visited
            self._visited += 1
            value, kind = self._values[place], self._kinds[place]
            if kind is _Kind.OBJECT:
                self._visit_attributes(value, place)
            elif kind is _Kind.SEQUENCE:
                self._contents.append((value, tuple(value)))
                if any((_KINDS.get(of) or _kind(of)) is not _Kind.OTHER for of in set(map(_CLASS, value))):  # it may be long
                    self._visit_items(enumerate(value), place)
            elif kind is _Kind.MAPPING:
                self._contents.append((value, tuple(value.values())))
                self._visit_items(value.items(), place)

    def _visit_attributes(self, owner: Any, place: int) -> None:
        attributes = _attributes(owner)
        self._contents.append((owner if _slots(type(owner)) else attributes, tuple(attributes.values())))
        found = [
            (name.startswith("_"), name, child, kind)
            for name, child in attributes.items()
            if (kind := _KINDS.get(child.__class__) or _kind(child.__class__)) is not _Kind.OTHER
            and id(child) not in self._seen
            and (kind not in _CONTAINERS or self._has_content(child))
            and name not in BOOKKEEPING  # half the time of a visit
            and not name.startswith("_self_")  # TensorFlow's record of the same attributes
        ]
        found.sort(key=operator.itemgetter(0, 1))
        for _, name, child, kind in found:
            self._add(child, kind, place, f".{name}")

    def _has_content(self, container: Any) -> bool:
        if not container:
            self._empty.append(container)
        return bool(container)

    def _visit_items(self, items: Iterable[tuple[Any, Any]], place: int) -> None:
        for number, (key, child) in enumerate(items):
            kind = _KINDS.get(child.__class__) or _kind(child.__class__)
            if kind is not _Kind.OTHER and id(child) not in self._seen:
                self._add(child, kind, place, f"[{key!r}]" if _is_plain(key) else f"[#{number}]")

    def _add(self, value: Any, kind: _Kind, parent: int, label: str) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if kind is _Kind.OPTIMIZER:
            self._optimizers.append((value, parent, label))
        else:
            self._append(value, kind, parent, label)

    def _append(self, value: Any, kind: _Kind, parent: int, label: str) -> None:
        self._values.append(value)
        self._kinds.append(kind)
        self._parents.append(parent)
        self._labels.append(label)

    def _name(self, place: int) -> str:
        labels = []
        while place >= 0:
            labels.append(self._labels[place])
            place = self._parents[place]
        return "".join(reversed(labels)).removeprefix(".")

    def _is_part_of(self, place: int, kind: type) -> bool:
        while (place := self._parents[place]) >= 0:
            if isinstance(self._values[place], kind):
                return True
        return False

    def _places_of(self, kind: type) -> list[int]:
        return [place for place, value in enumerate(self._values) if isinstance(value, kind)]

    @functools.cached_property
    def _variable_places(self) -> list[int]:
        places = [place for place, kind in enumerate(self._kinds) if kind is _Kind.VARIABLE]
        within = {id(native_variable(self._values[place])) for place in places if isinstance(self._values[place], KerasVariable)}
        return [
            place for place in places if id(self._values[place]) not in within and self._values[place].dtype not in _NOT_NUMBERS
        ]


def _is_plain(key: Any) -> bool:
    """Returns whether a key has the same text in every process, which an object with an address in its text has not."""
    return isinstance(key, (int, str)) or (isinstance(key, tuple) and all(map(_is_plain, key)))


def _attributes(owner: Any) -> dict[str, Any]:
    """Returns the attributes of an object, by name."""
    slots = _slots(type(owner))
    if not slots:
        return vars(owner)
    return {name: getattr(owner, name) for name in slots if hasattr(owner, name)} | getattr(owner, "__dict__", {})


_SLOTS: dict[type, tuple[str, ...]] = {}


def _slots(of: type) -> tuple[str, ...]:
    """Returns the attributes that objects of a class keep outside their `__dict__`, as a dataclass with slots does."""
    if of in _SLOTS:
        return _SLOTS[of]
    named = [vars(each).get("__slots__", ()) for each in of.__mro__]
    slots = [name for names in named for name in ([names] if isinstance(names, str) else names)]
    return _SLOTS.setdefault(of, tuple(name for name in slots if not name.startswith("__")))


_KINDS: dict[type, _Kind] = {}


def _kind(of: type) -> _Kind:
    if issubclass(of, VARIABLES):
        kind = _Kind.VARIABLE
    elif issubclass(of, _SEQUENCES):
        kind = _Kind.SEQUENCE
    elif issubclass(of, dict):
        kind = _Kind.MAPPING
    elif issubclass(of, keras.optimizers.Optimizer):
        kind = _Kind.OPTIMIZER
    else:
        is_searched = issubclass(of, _SEARCHED) or of.__module__.partition(".")[0] not in _LIBRARIES
        kind = _Kind.OBJECT if is_searched and (of.__dictoffset__ or _slots(of)) else _Kind.OTHER
    return _KINDS.setdefault(of, kind)
