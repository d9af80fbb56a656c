"""The state of the callbacks that steer training or sum up over it, which Keras forgets when a process ends."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from callbacks.tensorboard import GlobalStepTensorBoard

# attributes of plain numbers and lists of them
_PLAIN: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    GlobalStepTensorBoard: ("kept_seconds",),
}
# attributes that are lists of arrays
_ARRAYS: dict[type, tuple[str, ...]] = {keras.callbacks.EarlyStopping: ("best_weights",)}


def gather(callbacks: Iterable[keras.callbacks.Callback]) -> tuple[dict[str, dict], dict[str, list[np.ndarray]]]:
    """The state of those that steer, copied so that what they do next does not change it.

    Returns:
        Name of the callback -> its plain state, fit for JSON; and name of the callback and attribute -> arrays.
    """
    plain, arrays = {}, {}
    for name, callback in _named(callbacks):
        plain[name] = {attribute: to_plain(getattr(callback, attribute)) for attribute in _of(_PLAIN, callback)}
        for attribute in _of(_ARRAYS, callback):
            if getattr(callback, attribute) is not None:
                arrays[f"{name}.{attribute}"] = list(getattr(callback, attribute))
    return plain, arrays


def give_back(callbacks: Iterable[keras.callbacks.Callback], plain: dict[str, dict], arrays: dict[str, list[np.ndarray]]) -> None:
    """Sets what `gather` found; a callback that was not there then stays as it is.

    To be called after every `on_train_begin`, where callbacks forget.
    """
    for name, callback in _named(callbacks):
        for attribute, value in plain.get(name, {}).items():
            setattr(callback, attribute, value)
        for attribute in _of(_ARRAYS, callback):
            if f"{name}.{attribute}" in arrays:
                setattr(callback, attribute, arrays[f"{name}.{attribute}"])


def has_stopped(callbacks: Iterable[keras.callbacks.Callback]) -> bool:
    """Whether one of them has ended training for good."""
    return any(isinstance(callback, keras.callbacks.EarlyStopping) and callback.stopped_epoch > 0 for callback in callbacks)


def _named(callbacks: Iterable[keras.callbacks.Callback]) -> Iterator[tuple[str, keras.callbacks.Callback]]:
    """Each that has state, with a name that the next process gives it too: its class, and which of that class it is."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        if _of(_PLAIN, callback):
            kind = type(callback).__name__
            seen[kind] = seen.get(kind, 0) + 1
            yield f"{kind}-{seen[kind]}", callback


def _of(attributes: dict[type, tuple[str, ...]], callback: keras.callbacks.Callback) -> tuple[str, ...]:
    return next((names for kind, names in attributes.items() if isinstance(callback, kind)), ())


def to_plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: numbers, arrays and tensors as numbers and lists, what is neither as its text."""
    if isinstance(value, dict):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        array = np.asarray(value)
    except Exception:  # an object of somebody's own class
        return str(value)
    return array.tolist() if array.dtype.kind in "biuf" else str(value)
