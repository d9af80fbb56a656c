"""Checks the arguments of `GlobalStepCheckpoint`, when it is made and when training begins."""

import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from callbacks.disk import files
from callbacks.disk.template import Template
from callbacks.errors import InputError
from callbacks.model.attached import attach, attached
from callbacks.model.training_loop import Loop


def check_arguments(
    template: Template,
    save_weights_only: bool | None,
    save_freq: int | str,
    save_secs: float | None,
    max_overhead: float,
    keep: Mapping[str, int | None],
    resume: bool | str | os.PathLike,
) -> None:
    """Checks the arguments of `GlobalStepCheckpoint` as far as that needs no model.

    Raises:
        InputError: if an argument is invalid, or two contradict each other.
    """
    files.check_name_lengths(template)
    weights_only = template.suffix == ".weights.h5"
    if save_weights_only not in (None, weights_only):
        raise InputError(
            "The suffix decides what is saved: .weights.h5 for weights only, .keras for the whole model. "
            f"Received: save_weights_only={save_weights_only} with {template.text!r}"
        )
    if save_freq not in ("epoch", "auto") and not _is_positive(save_freq):
        raise InputError(f"Unrecognized save_freq: {save_freq!r}. Expected 'epoch', 'auto' or a positive number of batches.")
    if not (_is_number(max_overhead) and 0 < max_overhead < 1):
        raise InputError(
            f"max_overhead must be a share of time above 0 and below 1, such as 0.01 for 1 %. Received: {max_overhead!r}"
        )
    if save_secs is not None and not (_is_number(save_secs) and save_secs > 0):
        raise InputError(f"save_secs must be a number of seconds above 0, or None. Received: {save_secs!r}")
    if not isinstance(resume, (bool, str, os.PathLike)) or resume == "":
        raise InputError(f"resume must be True, False, or the path of a checkpoint. Received: {resume!r}")
    for name, value in keep.items():
        _check_rule(template, name, value)


def _check_rule(template: Template, name: str, value: Any) -> None:
    if value is None:
        return
    if not _is_positive(value):
        raise InputError(f"{name} must be a positive integer, or None. Received: {value!r}")
    if not template.counters:
        raise InputError(
            f"{name} needs a template with a counter, such as model_batch_at_{{batch:05d}}. Received: {template.text!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def begin_alone(callback: keras.callbacks.ModelCheckpoint, callbacks: Iterable[keras.callbacks.Callback], loop: Loop) -> None:
    """Checks that nothing else writes to the template or trains the model, and notes on the model which loop trains it.

    Args:
        callback: the callback that writes to the template.
        callbacks: all callbacks of the training.
        loop: the training loop.

    Raises:
        InputError: if another callback has the template, or an earlier `fit` that still runs trains the model.
    """
    template = callback.template
    if any(each is not callback and getattr(each, "template", None) == template for each in callbacks):
        raise InputError(f"Two callbacks of this fit write to {template.text!r}. Give each its own template.")
    other = attached(callback.model, Loop)
    if other is not None and other.is_fit and other.excludes(loop):
        raise InputError(
            "This model is in training: a fit with a GlobalStepCheckpoint runs, and this is another fit with one, perhaps in a "
            "callback. Give only one of them a GlobalStepCheckpoint."
        )
    attach(callback.model, loop)
