"""Reads and assigns the values that each replica has of a variable."""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from callbacks.model.keras_private import native_variable
from callbacks.model.state_tree import Variable
from callbacks.ranks import ranks


def components(strategy: tf.distribute.Strategy, variable: Variable) -> Sequence[tf.Variable]:
    """Returns the components of a variable: one for each replica of this process."""
    return strategy.experimental_local_results(native_variable(variable))


def assign_components(strategy: tf.distribute.Strategy, variable: Variable, value: np.ndarray) -> None:
    """Assigns each replica its own value.

    Args:
        strategy: the strategy that the variable was made under.
        variable: of shape `[...]`.
        value: of shape `[replicas at save time, ...]`, over all ranks. If the count has changed, a value that is summed over
            replicas goes to replica 0, and otherwise every replica gets replica 0's value.
    """
    parts = components(strategy, variable)
    replicas = len(parts) * ranks().size
    if replicas != len(value):
        if variable.aggregation in ("sum", tf.VariableAggregation.SUM):
            value = np.concatenate([value.sum(axis=0, keepdims=True), np.zeros_like(value, shape=(replicas - 1, *value.shape[1:]))])
        else:
            value = np.repeat(value[:1], replicas, axis=0)
    mine = value[ranks().rank * len(parts) :][: len(parts)]
    for part, component in zip(parts, mine, strict=True):
        part.assign(component)


def of_all_ranks(values: dict[str, list[Any]], summed: Iterable[str]) -> dict[str, list[Any]]:
    """Returns the values of all ranks for each variable, or only the chief's values if all ranks have equal ones.

    Args:
        values: name of a variable -> the values of this process's replicas, as tensors.
        summed: the names of variables that are summed over the ranks (metrics), so that even equal values are all needed.
    """
    world = ranks()
    if world.size == 1:
        return values
    own = {name: [part.numpy() for part in parts] for name, parts in values.items()}
    sums = world.gather({name: [zlib.crc32(part.tobytes()) for part in parts] for name, parts in own.items()})
    differ = [name for name in sums[0] if name in summed or any(each.get(name) != sums[0][name] for each in sums)]
    gathered = world.gather({name: own.get(name, []) for name in differ})
    return own | {name: [part for each in gathered for part in each[name]] for name in differ}
