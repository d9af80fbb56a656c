"""The learning rate of a run that resumes: that of the checkpoint, unless the user has compiled with another one since."""

import warnings
from dataclasses import dataclass
from typing import Any

import keras

from callbacks.attached import attach, attached
from callbacks.keras_private import constant_learning_rate
from callbacks.ranks import ranks
from callbacks.state_tree import StateTree


@dataclass
class _Compiled:
    """The rate that an optimizer had when a `fit` first saw it, before callbacks changed it."""

    rate: float


def compiled_rates(tree: StateTree) -> dict[str, float]:
    """Returns the learning rate that each optimizer was compiled with, by its name; those under a schedule have none.

    To be called first in `on_train_begin`, before anything is restored; later calls return the same.
    """
    found = {}
    for name, optimizer in tree.optimizers.items():
        rate = constant_learning_rate(optimizer)
        if rate is not None:
            known = attached(optimizer, _Compiled) or attach(optimizer, _Compiled(_value(rate)))
            found[name] = known.rate
    return found


@dataclass
class _OfFit:
    """The rates that a model's optimizers were compiled with when a `fit` began, by their names."""

    rates: dict[str, float]


def begin_fit(model: keras.Model) -> dict[str, float]:
    """Notes and returns the rates that the user has chosen; to be called in `on_train_begin`, before anything is restored."""
    return attach(model, _OfFit(compiled_rates(StateTree(model)))).rates


def rates_of_fit(model: keras.Model, tree: StateTree) -> dict[str, float]:
    """Returns what `compiled_rates` does, with the user's rates for optimizers that callbacks have put in the places of others.

    A callback that compiles the model in the middle of a `fit` gives it another rate, as one that lowers the rate does.
    """
    noted = attached(model, _OfFit)
    for name, rate in (noted.rates if noted else {}).items():
        optimizer = tree.optimizers.get(name)
        if optimizer is not None and attached(optimizer, _Compiled) is None:
            attach(optimizer, _Compiled(rate))
    return compiled_rates(tree)


def choose_rates(model: keras.Model, compiled: dict[str, float], header: dict[str, Any], path: str) -> None:
    """Sets the rates of a model that was just restored.

    A rate that the user has changed since the checkpoint was saved is used in place of the checkpoint's, which callbacks may have
    lowered. Where the two differ and the rate is not the same as when the run was compiled, a warning says which one is used.

    Args:
        model: the model.
        compiled: `compiled_rates` of it.
        header: of the checkpoint.
        path: of the checkpoint.
    """
    earlier = header.get("learning_rates", {})
    for name, optimizer in StateTree(model).optimizers.items():
        rate, mine = constant_learning_rate(optimizer), compiled.get(name)
        if rate is None or mine is None or mine in (_value(rate), earlier.get(name)):
            continue
        if name in earlier:
            why = f"compile has changed it from {earlier[name]:.7g}, so it replaces the checkpoint's {_value(rate):.7g}"
            with model.distribute_strategy.scope():
                rate.assign(mine)
        else:
            why = f"it is the checkpoint's, and not compile's {mine:.7g}: {path} does not say what its run was compiled with"
        if ranks().is_chief:
            warnings.warn(f"The learning rate is {_value(rate):.7g}: {why}.", stacklevel=2)


def _value(rate: keras.Variable) -> float:
    return float(keras.ops.convert_to_numpy(rate))
