"""Warns of random operations in a train step whose state only TensorFlow has, so that a restart repeats their sequence."""

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
    """Warns before the first batch if the train step of a model draws random numbers whose state cannot be saved.

    A train step that runs eagerly is not inspected.
    """

    def __init__(self, model: keras.Model):
        self._has_warned = False
        fit_hooks_of(model).around_train_step(self._trace)

    def _trace(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        logs = train_step(data)
        if not (self._has_warned or tf.executing_eagerly()) and ranks().is_chief:
            found = sorted(_DRAWS.intersection(operations_of(tf.compat.v1.get_default_graph())))
            if found:
                self._has_warned = True
                warnings.warn(
                    f"The train step draws from tf.random ({', '.join(found)}), whose state a checkpoint cannot contain: after a "
                    "resume it draws other numbers than without the interruption. Draw from keras.random with a SeedGenerator, or "
                    "from a tf.random.Generator, and make the generator an attribute of the model or of a layer.",
                    stacklevel=2,
                )
        return logs


def warn_of_unseen_draws(model: keras.Model) -> None:
    """Makes the next training of a model warn. Call it before its first batch; repeated calls do nothing."""
    if attached(model, UnseenDraws) is None:
        attach(model, UnseenDraws(model))
