"""The values that the variables of a model were restored to, while callbacks may still change them."""

from collections.abc import Callable

import keras
import tensorflow as tf

from callbacks.replicas import components
from callbacks.state_tree import StateTree


class RestoredVariables:
    """Takes back what callbacks do to a restored model in hooks that an earlier process has been through.

    Holding the values costs no memory, except for those that are changed meanwhile. Metrics are left out: `fit` resets them.

    Args:
        model: a model that was restored just now.
        restore: restores it once more, where callbacks have replaced variables: by `compile`, say.
    """

    def __init__(self, model: keras.Model, restore: Callable[[], None]):
        self._model, self._restore = model, restore
        self._tree = tree = StateTree(model)
        variables = [variable for name, variable in tree.variables.items() if name not in tree.metrics]
        parts = [part for variable in variables for part in components(model.distribute_strategy, variable)]
        self._values: list[tuple[tf.Variable, tf.Tensor]] = [(part, part.read_value()) for part in parts]

    def put_back(self) -> None:
        """Assigns the values once more."""
        if not self._has_same_variables():
            self._restore()
            return
        with self._model.distribute_strategy.scope():
            for part, value in self._values:
                part.assign(value)

    def _has_same_variables(self) -> bool:
        """Whether the model still has every variable under its name; metrics and losses may have come in addition."""
        if self._tree.is_current():
            return True
        now = StateTree(self._model).variables
        return all(now.get(name) is variable for name, variable in self._tree.variables.items() if name not in self._tree.metrics)
