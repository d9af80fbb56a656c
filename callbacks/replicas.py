"""What each replica has of a variable."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from callbacks.keras_private import native_variable
from callbacks.ranks import ranks
from callbacks.state_tree import Variable


def components(strategy: tf.distribute.Strategy, variable: Variable) -> Sequence[tf.Variable]:
    """Returns what each replica of this process has of a variable."""
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
