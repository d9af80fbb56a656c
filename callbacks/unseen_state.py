"""Warns of state that no checkpoint contains, so that a restart resets it.

In a train step, that is state which only TensorFlow has; in a callback, variables that neither the model nor `get_state` reaches.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from callbacks.attached import attach, attached
from callbacks.fit_hooks import fit_hooks_of
from callbacks.keras_private import native_variable, operations_of
from callbacks.ranks import ranks
from callbacks.state_tree import VARIABLES, StateTree

_RANDOM = (
    "draws from tf.random",
    "after a resume it draws other numbers than without the interruption. Draw from keras.random with a SeedGenerator, or from "
    "a tf.random.Generator, and make the generator an attribute of the model or of a layer.",
)
_TABLE = (
    "changes a hash table of tf.lookup",
    "after a resume it has its initial content. Keep the content in a variable.",
)
_KINDS = {
    "LookupTableImportV2": _TABLE,
    "LookupTableInsertV2": _TABLE,
    "LookupTableRemoveV2": _TABLE,
    "Multinomial": _RANDOM,
    "ParameterizedTruncatedNormal": _RANDOM,
    "RandomGamma": _RANDOM,
    "RandomPoisson": _RANDOM,
    "RandomPoissonV2": _RANDOM,
    "RandomShuffle": _RANDOM,
    "RandomStandardNormal": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformInt": _RANDOM,
    "SampleDistortedBoundingBox": _RANDOM,
    "SampleDistortedBoundingBoxV2": _RANDOM,
    "TruncatedNormal": _RANDOM,
}


class UnseenState:
    """Warns before the first batch if the train step of a model has such state.

    A train step that runs eagerly is not inspected.
    """

    def __init__(self, model: keras.Model):
        self._reported: set[tuple[str, str]] = set()
        fit_hooks_of(model).around_train_step(self._trace)

    def _trace(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        logs = train_step(data)
        if not tf.executing_eagerly() and ranks().is_chief:
            found = _KINDS.keys() & operations_of(tf.compat.v1.get_default_graph())
            for what, effect in {_KINDS[each] for each in found} - self._reported:
                names = ", ".join(sorted(each for each in found if _KINDS[each] == (what, effect)))
                warnings.warn(f"The train step {what} ({names}), whose state no checkpoint contains: {effect}", stacklevel=2)
                self._reported.add((what, effect))
        return logs


def warn_of_unseen_state(model: keras.Model) -> None:
    """Makes the next training of a model warn. Call it before its first batch; repeated calls do nothing."""
    if attached(model, UnseenState) is None:
        attach(model, UnseenState(model))


def warn_of_own_variables(model: keras.Model, callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Warns of callbacks without `get_state` that keep variables or optimizers outside the model.

    Args:
        model: the model in training.
        callbacks: all callbacks of the training, after their `on_train_begin`.
    """
    kept = [(type(each).__name__, *own) for each in callbacks if not hasattr(each, "get_state") for own in _kept(each)]
    if not kept or not ranks().is_chief:
        return
    tree = StateTree(model)
    saved = {id(native_variable(v)) for v in tree.variables.values()} | {id(each) for each in tree.optimizers.values()}
    names = sorted({f"{kind}.{name}" for kind, name, value in kept if id(value) not in saved})
    if names:
        warnings.warn(
            f"No checkpoint contains the variables of {', '.join(names)}: after a resume they have their initial values. Give the "
            "callback get_state and set_state, or make them attributes of the model.",
            stacklevel=2,
        )


def _kept(callback: keras.callbacks.Callback) -> Iterator[tuple[str, Any]]:
    """Yields the variables and optimizers in the attributes of a callback, and in their lists and dicts, by attribute."""
    for name, value in vars(callback).items():
        content = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        for each in content:
            if isinstance(each, VARIABLES):
                yield name, native_variable(each)
            elif isinstance(each, keras.optimizers.Optimizer):
                yield name, each
