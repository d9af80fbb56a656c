"""State of a train step that no checkpoint can hold, since only TensorFlow's operations know it: a restart begins it anew."""

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
    "a tf.random.Generator, which is an attribute of the model or of a layer.",
)
_TABLE = (
    "changes a hash table of tf.lookup",
    "after a resume it is as the model's code makes it. Keep what it holds in a variable.",
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
    """Warns, before the first batch, if the train step of a model has such state.

    A train step that runs eagerly is not looked into.
    """

    def __init__(self, model: keras.Model):
        self._told: set[tuple[str, str]] = set()
        fit_hooks_of(model).around_train_step(self._trace)

    def _trace(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        logs = train_step(data)
        if not tf.executing_eagerly() and ranks().is_chief:
            found = _KINDS.keys() & operations_of(tf.compat.v1.get_default_graph())
            for what, effect in {_KINDS[each] for each in found} - self._told:
                names = ", ".join(sorted(each for each in found if _KINDS[each] == (what, effect)))
                warnings.warn(f"The train step {what} ({names}), which no checkpoint holds: {effect}", stacklevel=2)
                self._told.add((what, effect))
        return logs


def warn_of_unseen_state(model: keras.Model) -> None:
    """Has the next training of a model warn; to be called before its first batch, more than once does no harm."""
    if attached(model, UnseenState) is None:
        attach(model, UnseenState(model))
