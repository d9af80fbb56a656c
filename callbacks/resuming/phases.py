"""Finds out whether a `fit` continues an earlier one of the same model, but trains other layers or with another optimizer.

A program that is started again calls the same `fit`s again, and the earlier ones have no batch left. So the decision depends on the
model in memory and on the checkpoint, and not on whether the model was trained or restored.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras

from callbacks.counting.counters import counters_of
from callbacks.errors import InputError
from callbacks.model.attached import attach, attached
from callbacks.model.trainable_flags import trainable_flags_of
from callbacks.ranks import ranks
from callbacks.resuming.restoring import Checkpoint
from callbacks.state.state import StoredState


@dataclass(frozen=True)
class _EndedFit:
    """The last `fit` of a model that has ended.

    Args:
        saved: the batch of the newest checkpoint of each template, by its path.
        optimizer: returns the optimizer that it trained with; None if it had none, or if it is deleted.
        epochs: the `epochs` of the `fit`; None if unknown.
    """

    saved: Mapping[str, int]
    optimizer: Callable[[], keras.optimizers.Optimizer | None]
    epochs: int | None


def end_fit(model: keras.Model, epochs: int | None, path: str | None, batch: int) -> None:
    """Keeps what a `fit` has trained. Each callback that saves calls it in `on_train_end`.

    Args:
        model: the model.
        epochs: the `epochs` of the `fit`; None if unknown.
        path: the path of the checkpoint that was saved last or restored; None if there is none.
        batch: the batch of that checkpoint.
    """
    ended, optimizer = attached(model, _EndedFit), getattr(model, "optimizer", None)
    saved = {**(ended.saved if ended else {}), **({path: batch} if path else {})}
    find = weakref.ref(optimizer) if optimizer is not None else lambda: None
    attach(model, _EndedFit(saved, find, epochs))


def begins_phase(model: keras.Model, checkpoint: Checkpoint, stored: StoredState, epochs: int | None) -> bool:
    """Returns whether the model has the state of the checkpoint already, but the checkpoint does not fit it any more.

    All ranks call it, in `on_train_begin`.

    Args:
        model: the model.
        checkpoint: the newest checkpoint.
        stored: the state in it.
        epochs: the `epochs` of the `fit` that begins; None if unknown.

    Raises:
        InputError: if the checkpoint does not fit the model, and the model does not have its state.
    """
    ended, counters = attached(model, _EndedFit), counters_of(model)
    if ended is None or counters.epoch_to_begin >= (epochs or math.inf):
        return False
    if not ranks().on_chief(lambda: ended.saved.get(checkpoint.path) == checkpoint.batch):
        return False
    counts, trains_others = counters.read(), _trains_others(model, stored, ended)
    if counts.batch != checkpoint.batch and trains_others:
        raise InputError(
            f"Cannot resume from {checkpoint.path}: it was saved at batch {checkpoint.batch}. Since then, the model was trained "
            f"up to batch {counts.batch} and compiled for other layers. Start the program again, or give this fit another template."
        )
    if counts.batch != checkpoint.batch or (counts.batches_in_epoch and not counts.epoch_ended):
        return False
    return trains_others or not stored.fits(model)


def first_epoch(model: keras.Model, initial_epoch: int) -> int:
    """Returns the 0-based epoch with which such a `fit` begins. Warns if a restart would train it in the `fit` before.

    Call it if `begins_phase` is true.

    Args:
        model: the model.
        initial_epoch: the `initial_epoch` of the `fit`.
    """
    first, ended = max(counters_of(model).epoch_to_begin, initial_epoch), attached(model, _EndedFit)
    if ended is not None and ended.epochs is not None and ended.epochs > first and ranks().is_chief:
        warnings.warn(
            f"This fit begins with epoch {first + 1}, but the fit before has epochs={ended.epochs}. After a restart, it would "
            f"train up to epoch {ended.epochs}, with its own settings. Pass initial_epoch={ended.epochs} to this one.",
            stacklevel=2,
        )
    return first


def has_frozen_others(model: keras.Model, stored: StoredState) -> bool:
    """Returns whether the user has frozen other layers than in the `fit` of the checkpoint."""
    return stored.header.get("frozen") not in (None, trainable_flags_of(model).frozen)


def _trains_others(model: keras.Model, stored: StoredState, ended: _EndedFit) -> bool:
    """Returns whether the model was compiled with a new optimizer since, and the user has frozen other layers."""
    return getattr(model, "optimizer", None) is not ended.optimizer() and has_frozen_others(model, stored)
