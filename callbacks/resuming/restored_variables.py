"""Keeps the restored values of a model's variables while callbacks may still change the variables."""

from collections.abc import Callable

import keras
import tensorflow as tf

from callbacks.model.replicas import components
from callbacks.model.state_tree import StateTree


class RestoredVariables:
    """Undoes changes of a restored model by callbacks, in hooks that an earlier process has run already.

    The values cost no memory unless they are changed meanwhile. Metrics are left out, since `fit` resets them.

    Args:
        model: a model that was just restored.
        restore: restores the model again, for when callbacks have replaced variables, for example with `compile`.
    """

    def __init__(self, model: keras.Model, restore: Callable[[], None]):
        self._model, self._restore = model, restore
        self._tree = tree = StateTree(model)
        variables = [variable for name, variable in tree.variables.items() if name not in tree.metrics]
        parts = [part for variable in variables for part in components(model.distribute_strategy, variable)]
        self._values: list[tuple[tf.Variable, tf.Tensor]] = [(part, part.read_value()) for part in parts]

    def put_back(self) -> None:
        """Assigns the restored values again."""
        if not self._has_same_variables():
            self._restore()
            return
        with self._model.distribute_strategy.scope():
            for part, value in self._values:
                part.assign(value)

    def _has_same_variables(self) -> bool:
        """Returns whether the model still has every variable under its name. New metrics and losses do not matter."""
        if self._tree.is_current():
            return True
        now = StateTree(self._model).variables
        return all(now.get(name) is variable for name, variable in self._tree.variables.items() if name not in self._tree.metrics)
