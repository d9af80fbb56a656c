"""What a running `fit` knows and tells no callback: the other callbacks, and whether there will be a validation."""

import sys
import threading
from dataclasses import dataclass
from types import FrameType

import keras

from callbacks.lock import Loop


@dataclass(frozen=True)
class RunningFit:
    """The `fit` that called us.

    Args:
        loop: that `fit`, or a loop of the user's own, for the lock.
        callbacks: all callbacks of it, in their order: the list itself, over which Keras iterates. Only the one that asks where
            there is no `CallbackList`.
        has_list: whether there is one.
        validates: whether it was given validation data; None where nobody calls `fit`.
    """

    loop: Loop
    callbacks: list[keras.callbacks.Callback]
    has_list: bool
    validates: bool | None


def running_fit(asking: keras.callbacks.Callback) -> RunningFit:
    """Looks up the stack for the `fit` that runs the callback that asks; to be called in `on_train_begin`.

    Keras has no public way to them: a callback can neither save the state of EarlyStopping beside it nor tell a name that
    waits for `val_loss` from one that would wait for ever.
    """
    callbacks, has_list, validates, loop = [asking], False, None, Loop(threading.get_ident())
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and asking in caller.callbacks:
            callbacks, has_list = caller.callbacks, True
        if caller is asking.model and frame.f_code.co_name == "fit":
            loop = Loop(threading.get_ident(), id(frame))
            validates = frame.f_locals.get("validation_data") is not None
            break
        frame = frame.f_back
    return RunningFit(loop, callbacks, has_list, validates)
