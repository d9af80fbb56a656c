"""Warns of state that no checkpoint contains, so that a restart resets it.

A train step may have state that only TensorFlow has; a callback without `get_state`, variables outside the model, and counts.
"""

import dis
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.model.attached import OWN, attach, attached
from callbacks.model.fit_hooks import fit_hooks_of
from callbacks.model.keras_private import native_variable, operations_of, written_variables
from callbacks.model.replicas import components
from callbacks.model.state_tree import VARIABLES, StateTree
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
_VARIABLES = (
    "changes variables",
    "after a resume they have their initial values. Make them attributes of the model or of a layer, other than in sets. Strings "
    "are not saved.",
)
_KINDS = {
    "FixedUnigramCandidateSampler": _RANDOM,
    "FractionalAvgPool": _RANDOM,
    "FractionalMaxPool": _RANDOM,
    "LearnedUnigramCandidateSampler": _RANDOM,
    "LogUniformCandidateSampler": _RANDOM,
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
    "ThreadUnsafeUnigramCandidateSampler": _RANDOM,
    "TruncatedNormal": _RANDOM,
    "UniformCandidateSampler": _RANDOM,
}


_LIBRARIES = ("builtins", "keras", "recipes", __name__.partition(".")[0])


class UnseenState:
    """Warns before the first batch if the train step of a model has such state.

    A train step that runs eagerly is not inspected.
    """

    def __init__(self, model: keras.Model):
        self._model, self._reported = model, set[tuple[str, str]]()
        fit_hooks_of(model).around_train_step(self._trace)

    def _trace(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        logs = train_step(data)
        if not tf.executing_eagerly() and ranks().is_chief:
            graph = tf.compat.v1.get_default_graph()
            found = _KINDS.keys() & operations_of(graph)
            for kind in {_KINDS[each] for each in found}:
                self._warn(kind, sorted(each for each in found if _KINDS[each] == kind))
            if variables := self._unsaved_variables(graph):
                self._warn(_VARIABLES, variables)
        return logs

    def _unsaved_variables(self, graph: tf.Graph) -> list[str]:
        """Returns the names of the variables that the train step writes and that no attribute of the model leads to."""
        strategy, saved = self._model.distribute_strategy, StateTree(self._model).variables.values()
        handles = {id(part.handle) for variable in saved for part in components(strategy, variable)}
        return sorted({each.name for each in written_variables(graph) if id(each.handle) not in handles and OWN not in each.name})

    def _warn(self, kind: tuple[str, str], names: list[str]) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            what, effect = kind
            warnings.warn(f"The train step {what} ({', '.join(names)}), whose state no checkpoint contains: {effect}", stacklevel=3)


def warn_of_unseen_state(model: keras.Model) -> None:
    """Makes the next training of a model warn. Call it before its first batch; repeated calls do nothing."""
    if attached(model, UnseenState) is None:
        attach(model, UnseenState(model))


def warn_of_own_state(model: keras.Model, callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Warns of callbacks without `get_state` that count, or keep variables or optimizers outside the model.

    Args:
        model: the model in training.
        callbacks: all callbacks of the training, after their `on_train_begin`.
    """
    stateless = [each for each in callbacks if not hasattr(each, "get_state")]
    if ranks().is_chief and (counts := sorted({f"{type(each).__name__}.{name}" for each in stateless for name in _counts(each)})):
        warnings.warn(
            f"No checkpoint contains {', '.join(counts)}: after a resume the callback counts from its initial value, and may "
            "change the model at other times. Give it get_state and set_state.",
            stacklevel=2,
        )
    kept = [(type(each).__name__, *own) for each in stateless for own in _kept(each)]
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


def _counts(callback: keras.callbacks.Callback) -> Iterator[str]:
    """Yields the attributes with numbers that a method counts up (`self.wait += 1`), if the method also uses the model."""
    methods = (each for of in _own_classes(type(callback)) for each in vars(of).values() if isinstance(each, types.FunctionType))
    for method in methods:
        read, written = set[str](), set[str]()
        for each in dis.get_instructions(method):
            if each.opname in ("LOAD_ATTR", "STORE_ATTR"):
                (read if each.opname == "LOAD_ATTR" else written).add(each.argval)
        if "model" in read:
            yield from (name for name in read & written if _is_number(vars(callback).get(name)))


def _own_classes(of: type) -> Iterator[type]:
    """Yields a class and its bases, without those of Keras and of this repository."""
    return (each for each in of.__mro__ if each.__module__.partition(".")[0] not in _LIBRARIES)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
