"""Rank synchronization: keeps the ranks of a `fit` equal, and verifies that they are.

Keras 3 does not support ranks, and under Keras 3 Horovod's own Keras module silently trains without averaging. So:

- `reduce_over_ranks` makes an optimizer average gradients over all ranks before any other use;
- the callback `RankSynchronization` broadcasts the chief's state to all ranks, verifies after the first batch that the ranks are
  equal, and combines the logs of all ranks, so that callbacks take the same decisions everywhere.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from callbacks import InputError, counters_of
from callbacks.model.attached import OWN, attach, attached
from callbacks.model.fit_hooks import around_apply, fit_hooks_of
from callbacks.model.hook_attributes import set_by_train_begin
from callbacks.model.keras_private import batches_of_validation, layers_of, symbolic_build
from callbacks.ranks import RanksDiffer

if TYPE_CHECKING:
    from recipes.common.distribution.engine_ranks import EngineRanks

_VALIDATION_BATCHES = 16  # between two checks for stop requests; in training, ranks check after each batch


def reduce_over_ranks(optimizer: keras.optimizers.Optimizer, ranks: "EngineRanks") -> keras.optimizers.Optimizer:
    """Makes an optimizer average its gradients over all ranks, before scaling, accumulation and clipping.

    The gradients of each batch are averaged, also with gradient accumulation, because accumulated gradients are part of the state,
    which must be equal on all ranks. The optimizer keeps its class, so that a saved model loads without Horovod.

    Args:
        optimizer: any optimizer of Keras 3. Under the policy `mixed_float16`, it is wrapped in a LossScaleOptimizer, as in
            `compile`: with the all-reduce inside, the other ranks would wait for the gradients of a rank that overflows.
        ranks: the ranks.

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
    """Counts the batches whose gradients an optimizer has averaged. Attached to each such optimizer."""

    def __init__(self):
        with tf.device("/cpu:0"):
            self._batches = tf.Variable(tf.zeros([], tf.int64), trainable=False, name=f"{OWN}batches_averaged")

    def count(self) -> None:
        """Counts a batch. Called in the graph of the train step."""
        self._batches.assign_add(1)

    def read(self) -> int:
        """Returns the number of batches."""
        return int(self._batches.numpy())


class RankSynchronization(keras.callbacks.Callback):
    """Keeps the ranks of a `fit` equal. Must be the first callback on every rank.

    Args:
        ranks: the ranks.

    Raises:
        InputError: when training begins, if the model, the optimizer or the data would make the ranks differ.
        RanksDiffer: after the first batch, if the ranks differ.
    """

    def __init__(self, ranks: "EngineRanks"):
        super().__init__()
        self._ranks, self._agrees_in_validation = ranks, False

    _training: "_Training" = set_by_train_begin()

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
            self._ranks.average_logs([])  # exchanges stop requests

    def on_train_end(self, logs=None):
        self._training.end()
        self._ranks.wait()


def is_synchronized(model: keras.Model) -> bool:
    """Returns whether the running `fit` has a `RankSynchronization` callback."""
    training = attached(model, _Training)
    return training is not None and training.runs


class _Training:
    """Synchronizes one model on every rank: its initial state, the check after the first batch, and the logs."""

    def __init__(self, model: keras.Model, ranks: "EngineRanks"):
        self._model, self._ranks = model, ranks
        self._runs = self._has_started = self._is_verified = False
        self._averaged_before = self._trained_before = 0  # batches, when the training started
        self._local_is_broadcast = False  # variables of each rank, such as BatchNorm's statistics, are equal at the start
        self._counters = counters_of(model)
        self._hooks = fit_hooks_of(model)
        self._hooks.around_execution(self._synchronize)
        self._hooks.around_epoch_logs(self._logs_of_all_ranks)

    @property
    def runs(self) -> bool:
        """Whether a `fit` with this callback runs."""
        return self._runs

    def begin(self) -> None:
        """Call this before other callbacks restore state."""
        self._runs, self._has_started, self._is_verified = True, False, False
        self._switch_off_jit()
        if self._model.built:
            self._broadcast_local()

    def end(self) -> None:
        self._runs = False

    def _switch_off_jit(self):
        if self._model.jit_compile:
            self._model.jit_compile = False
            self._hooks.trace_again()
            if self._ranks.is_chief:
                print(f"jit_compile  off: XLA cannot compile {self._ranks.engine}", flush=True)

    def _broadcast_local(self):
        if not self._local_is_broadcast:
            self._ranks.broadcast_variables(_local(self._model))
            self._local_is_broadcast = True

    def _synchronize(self, execute: Callable[[Any], Any], iterator: Any) -> Any:
        if not self._runs:
            return execute(iterator)
        if not self._has_started:
            self._start(iterator)
        logs = execute(iterator)
        if not self._is_verified:
            self._verify()
        return self._average(logs)

    def _start(self, iterator: Any) -> None:
        """Broadcasts the chief's state before the first batch; the chief may have restored it from a checkpoint."""
        model = self._model
        if not model.built:
            symbolic_build(model, iterator.element_spec)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._broadcast_local()
        self._ranks.broadcast_variables(_shared(model))
        self._averaged_before, self._trained_before = self._averaged(), self._counters.read().batch
        self._has_started = True

    def _averaged(self) -> int:
        averaged = attached(self._model.optimizer, AveragedBatches)
        return averaged.read() if averaged else 0

    def _verify(self) -> None:
        """Verifies after the first batch that this rank averages gradients, and that all ranks hold the same bits."""
        if self._counters.read().batch == self._trained_before:
            return  # a batch that the resume skips
        self._is_verified = True
        if self._averaged() == self._averaged_before:
            raise RanksDiffer(
                f"Rank {self._ranks.rank} trained its first batch without averaging the gradients: its train step does not "
                "call `optimizer.apply`. Every rank must call it in every batch."
            )
        self._ranks.expect_equal({v.path: v.value.read_value() for v in _shared(self._model)}, "After the first batch")
        self._ranks.wait()
        for metric in self._model.metrics_variables:
            if metric.aggregation != "sum":
                raise InputError(f"The metric variable {metric.path} cannot be summed over ranks. Remove the metric.")

    def _logs_of_all_ranks(self, merge: Callable, logs: dict) -> dict:
        """Returns the logs of an epoch, computed from metric sums over all ranks. Each rank keeps its own sums."""
        if not self._runs:
            return merge(logs)
        variables = [v.value for v in self._model.metrics_variables]
        own = [v.read_value() for v in variables]
        for variable, total in zip(variables, self._ranks.total(own, "metrics"), strict=True):
            variable.assign(total)
        merged = merge(logs)
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)
        return self._average(merged)  # a custom train step may log values that are not metrics

    def _average(self, logs: dict) -> dict:
        values = [tf.convert_to_tensor(value).numpy() for value in tf.nest.flatten(logs)]
        return tf.nest.pack_sequence_as(logs, self._ranks.average_logs(values))


def _refuse_what_differs(model: keras.Model, params: dict[str, Any], ranks: "EngineRanks") -> None:
    """Raises an error on every rank, before training, if the ranks would differ."""
    if attached(model.optimizer, AveragedBatches) is None:
        raise InputError(
            f"The optimizer {model.optimizer.name!r} does not average over the ranks. "
            "Compile the model with distribution.optimizer(optimizer)."
        )
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            raise InputError(
                f"{layer.path}: BatchNormalization(synchronized=True) does not work across processes. Remove synchronized=True."
            )
    if params["steps"] is None:
        raise InputError(
            "The number of batches in an epoch is unknown, so ranks might wait for each other forever. Pass steps_per_epoch to fit."
        )
    variables = [[list(v.shape), str(v.dtype)] for v in model.variables]
    setup = {"batches in an epoch": params["steps"], "epochs": params["epochs"], "variables": variables}
    gathered = ranks.gather(setup)
    for name, of_chief in gathered[0].items():
        for rank, each in enumerate(gathered):
            if each[name] != of_chief:
                chiefs, others = _length_or_value(of_chief), _length_or_value(each[name])
                raise InputError(f"All ranks must train the same model. The chief has {chiefs} {name}, rank {rank} has {others}.")


def _length_or_value(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _shared(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that are equal on all ranks during training."""
    return [*model.trainable_variables, *model.optimizer.variables]


def _local(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that differ between ranks: seeds, and statistics of the samples of a rank."""
    shared = {id(v) for v in model.trainable_variables}
    return [v for v in model.variables if id(v) not in shared]


def _scales_loss(optimizer: keras.optimizers.Optimizer) -> bool:
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
