"""Chooses the learning rate of a resumed run: the checkpoint's, unless the user has compiled with another rate since."""

import warnings
from dataclasses import dataclass
from typing import Any

import keras

from callbacks.model.attached import attach, attached
from callbacks.model.keras_private import constant_learning_rate
from callbacks.model.state_tree import StateTree
from callbacks.ranks import ranks


@dataclass
class _Compiled:
    """The rate of an optimizer when training first began, before callbacks changed it."""

    rate: float


def compiled_rates(tree: StateTree) -> dict[str, float]:
    """Returns optimizer name -> the learning rate it was compiled with. Optimizers with a schedule are left out.

    Call it first in `on_train_begin`, before a restore. Later calls return the same rates.
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
    """Optimizer name -> compiled rate at the beginning of a `fit`."""

    rates: dict[str, float]


def begin_fit(model: keras.Model) -> dict[str, float]:
    """Keeps and returns the compiled rates. Call it in `on_train_begin`, before a restore."""
    return attach(model, _OfFit(compiled_rates(StateTree(model)))).rates


def rates_of_fit(model: keras.Model, tree: StateTree) -> dict[str, float]:
    """Returns `compiled_rates`, with the user's rates for optimizers that callbacks have replaced.

    If a callback compiles the model in the middle of a `fit`, its new rate counts as a change by a callback.
    """
    noted = attached(model, _OfFit)
    for name, rate in (noted.rates if noted else {}).items():
        optimizer = tree.optimizers.get(name)
        if optimizer is not None and attached(optimizer, _Compiled) is None:
            attach(optimizer, _Compiled(rate))
    return compiled_rates(tree)


def choose_rates(model: keras.Model, compiled: dict[str, float], header: dict[str, Any], path: str) -> None:
    """Sets the learning rates of a model that was just restored.

    If the user has changed a rate in `compile` since the checkpoint was saved, the new rate replaces the checkpoint's, which
    callbacks may have lowered. A warning says which rate is used, unless both are equal or `compile` is unchanged.

    Args:
        model: the model.
        compiled: the result of `compiled_rates`.
        header: the header of the checkpoint.
        path: the path of the checkpoint.
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
            why = f"it is the checkpoint's rate, and not {mine:.7g} from compile, since {path} has no compiled rate to compare"
        if ranks().is_chief:
            warnings.warn(f"The learning rate is {_value(rate):.7g}: {why}.", stacklevel=2)


def _value(rate: keras.Variable) -> float:
    return float(keras.ops.convert_to_numpy(rate))
