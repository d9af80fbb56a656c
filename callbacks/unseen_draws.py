"""Random operations of a train step whose place in their sequence only TensorFlow knows: a restart begins the sequence again."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from callbacks.attached import attach, attached
from callbacks.fit_hooks import fit_hooks_of
from callbacks.keras_private import operations_of
from callbacks.ranks import ranks

_DRAWS = frozenset(
    (
        "Multinomial",
        "ParameterizedTruncatedNormal",
        "RandomGamma",
        "RandomPoisson",
        "RandomPoissonV2",
        "RandomShuffle",
        "RandomStandardNormal",
        "RandomUniform",
        "RandomUniformInt",
        "SampleDistortedBoundingBox",
        "SampleDistortedBoundingBoxV2",
        "TruncatedNormal",
    )
)


class UnseenDraws:
    """Warns, before the first batch, if the train step of a model draws what no checkpoint can hold.

    A train step that runs eagerly is not looked into.
    """

    def __init__(self, model: keras.Model):
        self._has_told = False
        fit_hooks_of(model).around_train_step(self._trace)

    def _trace(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        logs = train_step(data)
        if not (self._has_told or tf.executing_eagerly()) and ranks().is_chief:
            found = sorted(_DRAWS.intersection(operations_of(tf.compat.v1.get_default_graph())))
            if found:
                self._has_told = True
                warnings.warn(
                    f"The train step draws from tf.random ({', '.join(found)}), and a checkpoint cannot hold how far it has come: "
                    "after a resume it draws other numbers than without the interruption. Draw from keras.random with a "
                    "SeedGenerator, or from a tf.random.Generator, which is an attribute of the model or of a layer.",
                    stacklevel=2,
                )
        return logs


def warn_of_unseen_draws(model: keras.Model) -> None:
    """Has the next training of a model warn; to be called before its first batch, more than once does no harm."""
    if attached(model, UnseenDraws) is None:
        attach(model, UnseenDraws(model))
