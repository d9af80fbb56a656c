"""One training in many processes: what keeps the ranks of a `fit` equal, and proves that they are.

Keras 3 knows nothing of ranks, and Horovod's own part for Keras trains under Keras 3 without averaging and without an error. So:

- `averaging` makes an optimizer average the gradients before it does anything else with them;
- `Synchronous`, a callback, gives every rank the chief's state, proves after the first batch that the ranks are equal, and makes
  the logs those of all ranks, so that callbacks decide alike everywhere.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from callbacks import InputError, counters_of
from callbacks.attached import attach, attached
from callbacks.fit_hooks import around_apply, fit_hooks_of
from callbacks.keras_private import batches_of_validation, layers_of, symbolic_build
from callbacks.ranks import RanksDiffer

if TYPE_CHECKING:
    from recipes.common.distribution.engine_ranks import EngineRanks

_VALIDATION_BATCHES = 16  # between two looks at whether any rank was asked to leave; in training each batch tells


def averaging(optimizer: keras.optimizers.Optimizer, ranks: "EngineRanks") -> keras.optimizers.Optimizer:
    """Has an optimizer average its gradients over all ranks, before scaling, accumulation and clipping see them.

    Each batch is averaged, also under gradient accumulation: what is accumulated is part of the state, and state is equal on all
    ranks. The optimizer keeps its class, so that a saved model names that, and loads where there is no Horovod.

    Args:
        optimizer: any of Keras 3. Under the policy `mixed_float16` it is put into a LossScaleOptimizer, as `compile` would do:
            inside of that, one rank's overflow would leave the others waiting for its gradients.
        ranks: who averages.

    Returns:
        The optimizer to compile with.
    """
    if keras.mixed_precision.dtype_policy().name == "mixed_float16" and not _scales_loss(optimizer):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    averaged = attach(optimizer, AveragedBatches())

    def ready():
        ranks.gradients_ready_at = time.perf_counter()

    def apply_average(apply, grads, trainable_variables=None):
        parts = [part for part in tf.nest.flatten(grads, expand_composites=True) if part is not None]
        with tf.control_dependencies(parts), tf.device("/cpu:0"):
            tf.numpy_function(ready, [], [])
        grads = ranks.average(grads, "grads")
        averaged.count()
        apply(grads, trainable_variables)

    around_apply(optimizer, apply_average)
    return optimizer


class AveragedBatches:
    """Counts the batches whose gradients an optimizer has averaged. It is attached to each optimizer that averages."""

    def __init__(self):
        with tf.device("/cpu:0"):
            self._batches = tf.Variable(tf.zeros([], tf.int64), trainable=False, name="batches_averaged")

    def count(self) -> None:
        """Counts a batch, in the graph of the train step."""
        self._batches.assign_add(1)

    def read(self) -> int:
        """Returns how many were counted so far."""
        return int(self._batches.numpy())


class Synchronous(keras.callbacks.Callback):
    """Keeps the ranks of a `fit` equal. It has to be the first in the list of callbacks, on every rank.

    Args:
        ranks: the ranks.

    Raises:
        InputError: when training begins, for a model, an optimizer or data that would let the ranks differ.
        RanksDiffer: after the first batch, if they do.
    """

    def __init__(self, ranks: "EngineRanks"):
        super().__init__()
        self._ranks = ranks

    def on_train_begin(self, logs=None):
        model = self.model
        _refuse_what_differs(model, self.params, self._ranks)
        self._training = attached(model, _Training) or attach(model, _Training(model, self._ranks))
        self._training.begin()

    def on_test_begin(self, logs=None):
        batches = self._ranks.gather(batches_of_validation(self.model))
        self._agrees_in_validation = None not in batches and len(set(batches)) == 1

    def on_test_batch_end(self, batch, logs=None):
        if self._agrees_in_validation and (batch + 1) % _VALIDATION_BATCHES == 0:
            self._ranks.average_logs([])  # whether any rank was asked to leave

    def on_train_end(self, logs=None):
        self._training.end()
        self._ranks.wait()


def is_synchronous(model: keras.Model) -> bool:
    """Whether a `Synchronous` is among the callbacks of the running `fit`."""
    training = attached(model, _Training)
    return training is not None and training.runs


class _Training:
    """What is done for one model, on every rank: a start from the chief's state, a proof, and logs of all ranks."""

    def __init__(self, model: keras.Model, ranks: "EngineRanks"):
        self._model, self._ranks = model, ranks
        self._runs = self._has_started = self._is_proven = False
        self._local_is_equal = False  # what each rank keeps for itself, such as BatchNorm's statistics, began equal
        self._counters = counters_of(model)
        self._hooks = fit_hooks_of(model)
        self._hooks.around_execution(self._synchronize)
        self._hooks.around_epoch_logs(self._of_all_ranks)

    @property
    def runs(self) -> bool:
        """Whether a `fit` with these callbacks runs."""
        return self._runs

    def begin(self) -> None:
        """To be called before other callbacks restore anything."""
        self._runs, self._has_started, self._is_proven = True, False, False
        self._switch_off_jit()
        if self._model.built:
            self._equalize_local()

    def end(self) -> None:
        self._runs = False

    def _switch_off_jit(self):
        if self._model.jit_compile:
            self._model.jit_compile = False
            self._hooks.trace_again()
            if self._ranks.is_chief:
                print(f"jit_compile  off: XLA cannot compile {self._ranks.engine}", flush=True)

    def _equalize_local(self):
        if not self._local_is_equal:
            self._ranks.broadcast_variables(_local(self._model))
            self._local_is_equal = True

    def _synchronize(self, execute: Callable[[Any], Any], iterator: Any) -> Any:
        if not self._runs:
            return execute(iterator)
        if not self._has_started:
            self._start(iterator)
        logs = execute(iterator)
        if not self._is_proven:
            self._prove()
        return self._average(logs)

    def _start(self, iterator: Any) -> None:
        """Before the first batch: every rank gets what the chief has, from its checkpoint perhaps."""
        model = self._model
        if not model.built:
            symbolic_build(model, iterator.element_spec)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._equalize_local()
        self._ranks.broadcast_variables(_shared(model))
        self._averaged_before, self._trained_before = self._averaged(), self._counters.read().batch
        self._has_started = True

    def _averaged(self) -> int:
        averaged = attached(self._model.optimizer, AveragedBatches)
        return averaged.read() if averaged else 0

    def _prove(self) -> None:
        """After the first batch: this rank took part in averaging, and all ranks hold the same bits."""
        if self._counters.read().batch == self._trained_before:
            return  # a batch that was trained on before a restart, and is left out
        self._is_proven = True
        if self._averaged() == self._averaged_before:
            raise RanksDiffer(
                f"Rank {self._ranks.rank} trained its first batch without averaging the gradients: its train step does not "
                "call `optimizer.apply`. Every rank has to, in every batch."
            )
        self._ranks.expect_equal({v.path: v.value.read_value() for v in _shared(self._model)}, "After the first batch")
        self._ranks.wait()
        for metric in self._model.metrics_variables:
            if metric.aggregation != "sum":
                raise InputError(f"The metric variable {metric.path} cannot be summed over ranks. Leave the metric out.")

    def _of_all_ranks(self, merge: Callable, logs: dict) -> dict:
        """The epoch's logs from the metrics' sums over all ranks; each rank then has its own sums again."""
        if not self._runs:
            return merge(logs)
        variables = [v.value for v in self._model.metrics_variables]
        own = [v.read_value() for v in variables]
        for variable, total in zip(variables, self._ranks.total(own, "metrics"), strict=True):
            variable.assign(total)
        merged = merge(logs)
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)
        return self._average(merged)  # a train step of the user's may log what is no metric

    def _average(self, logs: dict) -> dict:
        values = [tf.convert_to_tensor(value).numpy() for value in tf.nest.flatten(logs)]
        return tf.nest.pack_sequence_as(logs, self._ranks.average_logs(values))


def _refuse_what_differs(model: keras.Model, params: dict[str, Any], ranks: "EngineRanks") -> None:
    """Raises, on every rank, before anything is trained."""
    if attached(model.optimizer, AveragedBatches) is None:
        raise InputError(
            f"The optimizer {model.optimizer.name!r} does not average over the ranks. "
            "Compile the model with distribution.optimizer(optimizer)."
        )
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            raise InputError(f"{layer.path}: BatchNormalization(synchronized=True) does not reach over processes. Leave it out.")
    if params["steps"] is None:
        raise InputError("Ranks have to know how many batches an epoch has, or one would wait for another. Give steps_per_epoch.")
    variables = [[list(v.shape), str(v.dtype)] for v in model.variables]
    facts = {"batches in an epoch": params["steps"], "epochs": params["epochs"], "variables": variables}
    gathered = ranks.gather(facts)
    for name, of_chief in gathered[0].items():
        for rank, each in enumerate(gathered):
            if each[name] != of_chief:
                raise InputError(
                    f"All ranks have to train the same. The chief has {_brief(of_chief)} {name}, rank {rank} {_brief(each[name])}."
                )


def _brief(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _shared(model: keras.Model) -> list[keras.Variable]:
    """The variables that are equal on all ranks while training."""
    return [*model.trainable_variables, *model.optimizer.variables]


def _local(model: keras.Model) -> list[keras.Variable]:
    """The variables of which each rank has its own: seeds, and statistics of the samples that it sees."""
    shared = {id(v) for v in model.trainable_variables}
    return [v for v in model.variables if id(v) not in shared]


def _scales_loss(optimizer: keras.optimizers.Optimizer) -> bool:
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
