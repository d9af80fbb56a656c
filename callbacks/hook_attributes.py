"""Attributes of a callback that a hook sets. A read before that says which call is missing, not that an attribute is."""

from typing import Any

from callbacks.errors import InputError


class _SetByHook:
    """Stands for an attribute until the hook sets it.

    Python looks in the object before it looks here, in the class, so later reads cost nothing.
    """

    def __init__(self, hook: str, advice: str):
        self._hook, self._advice = hook, advice

    def __get__(self, callback: object, kind: type | None = None) -> Any:
        if callback is None:
            return self
        raise InputError(f"{type(callback).__name__}.{self._hook} was not called. In a custom training loop, {self._advice}.")


def set_by_model() -> Any:
    """Declares an attribute that `set_model` sets: `_counters: Counters = set_by_model()`."""
    return _SetByHook("set_model", "give the callbacks a model: keras.callbacks.CallbackList(callbacks, model=model)")


def set_by_train_begin() -> Any:
    """Declares an attribute that `on_train_begin` sets."""
    return _SetByHook("on_train_begin", "call callbacks.on_train_begin() before the first epoch")
