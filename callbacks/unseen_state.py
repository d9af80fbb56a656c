"""Warns of state in a train step that only TensorFlow has, so that no checkpoint contains it and a restart resets it."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from callbacks.attached import attach, attached
from callbacks.fit_hooks import fit_hooks_of
from callbacks.keras_private import operations_of
from callbacks.ranks import ranks

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
