"""Keeps the flags `trainable` of layers and variables, so that callbacks' changes survive a restart.

Keras reads the flags when it traces the train step. Later changes have no effect before the next trace.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from callbacks.model.attached import attach, attached
from callbacks.model.fit_hooks import fit_hooks_of
from callbacks.model.keras_private import KerasVariable
from callbacks.model.state_tree import StateTree


class TrainableFlags:
    """The flags of one model's layers and variables. `trainable_flags_of(model)` makes it, before training begins.

    Attributes:
        frozen: the names of the layers that the user had frozen when the `fit` began.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self.begin_fit()
        self._at_begin = self._of_fit
        self._traced: dict[str, bool] | None = None  # the changes when the train step was traced; None in eager training
        fit_hooks_of(model).around_train_step(self._trace)

    def begin_fit(self) -> None:
        """Keeps the user's flags. Call it when a `fit` begins, before callbacks change them."""
        tree = StateTree(self._model)
        self._of_fit = _flags(_owners(tree))
        self.frozen = sorted(name for name, layer in tree.layers.items() if not layer.trainable)

    def changes(self, tree: StateTree) -> dict[str, bool]:
        """Returns name -> flag for the flags that have changed since training began, as the train step uses them.

        Args:
            tree: the state tree of the model.
        """
        return self._changes(tree) if self._traced is None else self._traced

    def restore(self, changes: Mapping[str, bool]) -> None:
        """Restores the changes that callbacks made in an earlier process.

        Args:
            changes: the result of `changes` in that process.
        """
        owners = _owners(StateTree(self._model))
        now = _flags(owners)
        wanted = {name: changes.get(name, flag) for name, flag in now.items()}
        if wanted == now:
            return
        for _ in range(2):  # a layer passes its flag to its inner layers, which may come before it
            for name, owner in owners.items():
                if bool(owner.trainable) is not wanted[name]:
                    owner.trainable = wanted[name]
        fit_hooks_of(self._model).trace_again()

    def put_back(self, changes: Mapping[str, bool]) -> None:
        """Restores the user's flags and the changes, after callbacks may have changed flags when training began."""
        self.restore(self._of_fit | dict(changes))

    def _changes(self, tree: StateTree) -> dict[str, bool]:
        now = _flags(_owners(tree))
        return {name: flag for name, flag in now.items() if self._at_begin.get(name, flag) is not flag}

    def _trace(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Keeps the flags before the train step, which may change them for its later parts, as those of GANs do."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        if tf.executing_eagerly():
            self._traced = None
        elif tf.get_static_value(replica) == 0:
            self._traced = self._changes(StateTree(self._model))
        return train_step(data)


def trainable_flags_of(model: keras.Model) -> TrainableFlags:
    """Returns the flags of a model, the same object each time."""
    return attached(model, TrainableFlags) or attach(model, TrainableFlags(model))


def _owners(tree: StateTree) -> dict[str, keras.Layer | keras.Variable]:
    return tree.layers | {name: each for name, each in tree.variables.items() if isinstance(each, KerasVariable)}


def _flags(owners: Mapping[str, keras.Layer | keras.Variable]) -> dict[str, bool]:
    return {name: bool(owner.trainable) for name, owner in owners.items()}
