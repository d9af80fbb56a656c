"""The state of callbacks, which Keras loses when a process ends.

Any callback with these two methods is resumed:

    get_state() -> state      plain data: None, bool, int, float, str, lists, dicts with string keys, numpy arrays and scalars
    set_state(state)          receives what `get_state` returned; tuples arrive as lists, arrays as copies of its own

It may have a third one, which is called before `get_state` of any callback at each save at the end of a batch:

    before_save(logs)         receives the logs of the batch, whose `on_train_batch_end` it may not have seen yet

Keras's own callbacks lack these methods; an adapter reads and sets their attributes. A subclass with the two methods uses
both: the adapter saves the attributes of Keras's class, the methods save what the subclass adds.

In a file, a state is JSON, in which `{"array": [place, dtype, shape]}` and `{"scalar": [place, dtype]}` stand for an array and a
numpy scalar, and `{"dict": {...}}` for a dict that would look like one of these three. The arrays lie beside it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

from callbacks import plain_data
from callbacks.errors import InputError, one_line
from callbacks.model.keras_private import keep_best
from callbacks.plain_data import DEEPEST, is_logged

_MARKS = ({"array"}, {"scalar"}, {"dict"})
_NATIVE = 8  # bytes of the largest number that HDF5 stores as what it is on every machine
_LARGEST = float(np.finfo("float32").max)  # Keras's callbacks compare numbers as float32


class Stateful(Protocol):
    """A callback that is resumed."""

    def get_state(self) -> Any:
        """Returns the callback's state as plain data."""

    def set_state(self, state: Any) -> None:
        """Restores the state that `get_state` returned."""


class NotPlain(TypeError):
    """A callback's state is not plain data. The message names the callback and the key."""


@dataclass(frozen=True)
class CallbackStates:
    """The states of all callbacks of a `fit`, as a file holds them.

    Args:
        plain: the JSON part of each state, by the state's name.
        arrays: the arrays of each state, by the state's name.
        hook: the hook in which the states were read: callbacks before the one that saves had run it, later ones had not.
        has_stopped: whether a callback has stopped training for good.
    """

    plain: dict[str, Any]
    arrays: dict[str, list[np.ndarray]]
    hook: str = "on_train_batch_end"
    has_stopped: bool = False

    def of(self, name: str) -> Any:
        """Returns a copy of a state, by name."""
        state = _decode(self.plain[name], dict(enumerate(self.arrays.get(name, []))))
        for key, arrays in self.arrays.items():
            of, dot, attribute = key.partition(".")
            if dot and of == name:  # how format 1 and early files of format 2 name the best weights of EarlyStopping
                state[attribute] = [array.copy() for array in arrays]
        return state


def gather(callbacks: Iterable[keras.callbacks.Callback], hook: str) -> CallbackStates:
    """Reads the states of all callbacks that have one. Later changes of the callbacks do not affect the result.

    Args:
        callbacks: all callbacks of a `fit`.
        hook: the hook of the callback that saves.

    Raises:
        NotPlain: if a state is not plain data.
    """
    callbacks = list(callbacks)
    plain, arrays = {}, {}
    for name, owner, source in _states(callbacks):
        held: list[np.ndarray] = []
        plain[name] = _encode(source.get_state(), _Place(owner), held, 0)
        if held:
            arrays[name] = held
    stopped = any(isinstance(each, keras.callbacks.EarlyStopping) and each.stopped_epoch > 0 for each in callbacks)
    return CallbackStates(plain, arrays, hook, stopped)


def announce_save(callbacks: Iterable[keras.callbacks.Callback], logs: Mapping[str, Any]) -> None:
    """Calls `before_save` of each callback that has all three methods, so that its state and its files include the last batch.

    Args:
        callbacks: all callbacks of a `fit`.
        logs: the logs of the batch that ends.
    """
    for callback in callbacks:
        if _has(callback, "get_state", "set_state", "before_save"):
            callback.before_save(logs)


def give_back(callbacks: Iterable[keras.callbacks.Callback], states: CallbackStates, path: str) -> None:
    """Restores the states. A callback without a stored state stays as it is.

    Call it after every `on_train_begin`, which resets callbacks.

    Args:
        callbacks: all callbacks of a `fit`.
        states: the states in a checkpoint.
        path: the path of the checkpoint, for messages.

    Raises:
        InputError: if a callback does not accept its state.
    """
    for name, _, source in _states(callbacks):
        if name in states.plain:
            try:
                source.set_state(states.of(name))
            except InputError:
                raise
            except Exception as error:  # of any class, from a user's code or for a file that anybody has written
                raise InputError(
                    f"{name} cannot be restored from {path}: {type(error).__name__}: {one_line(error)}. "
                    "Resume with the callbacks of the run that saved it."
                ) from error


def check(callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Checks that every state is plain data. Call it when training begins, after every `on_train_begin`.

    Raises:
        InputError: if a state is not plain data.
    """
    try:
        gather(callbacks, "on_train_begin")
    except NotPlain as error:
        raise InputError(str(error)) from None


def as_json(value: Any, depth: int = 0) -> Any:
    """Returns a value as JSON: arrays and tensors of numbers as numbers and lists, anything else as its text.

    A reader accepts no deeper nesting and no larger integers.
    """
    if isinstance(value, (dict, list, tuple)) and depth == DEEPEST:
        return "..."
    if isinstance(value, dict):
        return {str(key): as_json(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each, depth + 1) for each in value]
    if isinstance(value, int) and not is_logged(value):
        return f"{value:#x}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        array = array.astype("float64") if array.dtype.kind == "V" else array  # bfloat16
    except Exception:  # an object of a user's class
        return str(value)
    return array.tolist() if array.dtype.kind in "biuf" else str(value)


class _KerasState:
    """The state of one of Keras's own callbacks: some of its attributes."""

    def __init__(self, callback: keras.callbacks.Callback, attributes: tuple[str, ...], arrays: tuple[str, ...] = ()):
        self._callback, self._attributes, self._arrays = callback, attributes, arrays

    def get_state(self) -> dict[str, Any]:
        present = vars(self._callback)
        state = {name: as_json(present[name]) for name in self._attributes if name in present}
        for name in self._arrays:
            if present.get(name) is not None:
                # Keras replaces these arrays and never modifies them, so no copy is needed.
                state[name] = [_read_only(array) for array in present[name]]
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"the state is of type {type(state).__name__}")
        for name in (*self._attributes, *self._arrays):
            if name in state:
                _check_like(state[name], name, self._callback.model)
                setattr(self._callback, name, state[name])
        keep_best(self._callback)


def _check_like(value: Any, name: str, model: keras.Model | None) -> None:
    """Checks that a value is one that such an attribute of Keras's callbacks may have.

    Raises:
        TypeError: if it is not.
    """
    match name:
        case "best_weights":
            fits = isinstance(value, list) and _are_weights(value, model)
        case "epoch":
            fits = isinstance(value, list) and all(type(each) is int for each in value)
        case "history":
            fits = isinstance(value, dict) and all(isinstance(each, list) for each in value.values())
        case _:
            is_number = isinstance(value, (int, float)) and not _LARGEST < abs(value) < math.inf
            fits = is_number or (value is None and name in ("best", "_current_epoch"))
    if not fits:
        raise TypeError(f"{name}, of type {type(value).__name__}, does not fit")


def _are_weights(values: list[Any], model: keras.Model | None) -> bool:
    """Returns whether values are arrays that the model accepts as its weights. A callback may still add weights to it."""
    if not all(isinstance(each, np.ndarray) and each.dtype.kind not in "SUmM" for each in values):
        return False
    weights = model.weights if model is not None else []
    return len(values) != len(weights) or all(value.shape == tuple(each.shape) for value, each in zip(values, weights, strict=True))


_ADAPTERS: dict[type, Callable[[Any], _KerasState]] = {
    keras.callbacks.EarlyStopping: lambda callback: _KerasState(
        callback, ("wait", "stopped_epoch", "best", "best_epoch"), ("best_weights",)
    ),
    keras.callbacks.ReduceLROnPlateau: lambda callback: _KerasState(callback, ("wait", "cooldown_counter", "best")),
    keras.callbacks.ModelCheckpoint: lambda callback: _KerasState(callback, ("best",)),
    keras.callbacks.History: lambda callback: _KerasState(callback, ("epoch", "history")),
    keras.callbacks.SwapEMAWeights: lambda callback: _KerasState(callback, ("_ema_weights_in_model",)),
    keras.callbacks.BackupAndRestore: lambda callback: _KerasState(callback, ("_current_epoch",)),  # its own backups name it
}


def _has(callback: keras.callbacks.Callback, *methods: str) -> bool:
    return all(callable(getattr(callback, method, None)) for method in methods)


def _states(callbacks: Iterable[keras.callbacks.Callback]) -> Iterator[tuple[str, str, Stateful]]:
    """Yields each state: its name, the class of its callback, and how to read and set it.

    The next process gives it the same name: the class, and which callback of that class it is.
    """
    seen: Counter[str] = Counter()
    for callback in callbacks:
        kind = type(callback).__name__
        adapter = next((adapt(callback) for of, adapt in _ADAPTERS.items() if isinstance(callback, of)), None)
        is_stateful = _has(callback, "get_state", "set_state")
        if adapter or is_stateful:
            seen[kind] += 1
            name = f"{kind}-{seen[kind]}"
        if adapter:
            yield name, kind, adapter
        if is_stateful:
            yield f"{name}-own" if adapter else name, kind, callback


class _Place:
    """The place of a value in a callback state, for messages."""

    def __init__(self, owner: str, path: str = "state"):
        self._owner, self._path = owner, path

    def __getitem__(self, key: str | int) -> "_Place":
        return _Place(self._owner, f"{self._path}[{key!r}]")

    def refuse(self, what: str) -> NotPlain:
        return NotPlain(
            f"{self._owner}.get_state() returns what a checkpoint cannot hold: {self._path} is {what}. A state is None, bool, int, "
            "float, str, lists, dicts with string keys, numpy arrays and numpy scalars; turn a tensor into an array."
        )


def _encode(value: Any, place: _Place, arrays: list[np.ndarray], depth: int) -> Any:
    """Returns the JSON part of a state, and appends its arrays."""
    if depth > DEEPEST:
        raise place.refuse(f"nested more than {DEEPEST} levels deep")
    if isinstance(value, (np.ndarray, np.generic)):
        try:
            dtype = plain_data.dtype_name(value.dtype)
        except TypeError:
            raise place.refuse(f"an array of dtype {value.dtype}") from None
        arrays.append(_stored(value))
        at = len(arrays) - 1
        return {"array": [at, dtype, list(value.shape)]} if isinstance(value, np.ndarray) else {"scalar": [at, dtype]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(each, place[i], arrays, depth + 1) for i, each in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise place.refuse(f"a dict with the key {key!r:.100}")
        entries = {key: _encode(each, place[key], arrays, depth + 1) for key, each in value.items()}
        return {"dict": entries} if entries.keys() in _MARKS else entries
    raise place.refuse(f"of type {type(value).__name__}")


def _decode(tree: Any, arrays: dict[int, np.ndarray], depth: int = 0) -> Any:
    """Returns a state from its JSON part, and removes its arrays from `arrays`."""
    if depth > DEEPEST:
        raise ValueError(f"a callback state is nested more than {DEEPEST} levels deep")
    if isinstance(tree, list):
        return [_decode(each, arrays, depth + 1) for each in tree]
    match tree:
        case {"array": [int(at), str(dtype), list(shape)], **rest} if not rest:
            return _restored(arrays, at, dtype, shape)
        case {"scalar": [int(at), str(dtype)], **rest} if not rest:
            return _restored(arrays, at, dtype, [])[()]
        case {"dict": dict(entries), **rest} if not rest:
            return {key: _decode(each, arrays, depth + 1) for key, each in entries.items()}
        case dict():
            return {key: _decode(each, arrays, depth + 1) for key, each in tree.items()}
    return tree


def _stored(value: np.ndarray | np.generic) -> np.ndarray:
    """Returns an array that does not change and that HDF5 can store: values without an HDF5 type become bytes."""
    array = np.asarray(value)
    array = np.array(array, order="C") if array.flags.writeable else np.ascontiguousarray(array).reshape(array.shape)
    return array if array.dtype.kind in "biuf" and array.dtype.itemsize <= _NATIVE else array.reshape(-1).view("uint8")


def _restored(arrays: dict[int, np.ndarray], at: int, dtype: str, shape: list[int]) -> np.ndarray:
    if at not in arrays:  # many copies of one array would fill the memory
        raise ValueError(f"array {at} of a callback state is missing, or has two places")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"an array of a callback state has the shape {shape!r:.100}")
    return arrays.pop(at).reshape(-1).view(plain_data.dtype_named(dtype)).reshape(shape).copy()


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
