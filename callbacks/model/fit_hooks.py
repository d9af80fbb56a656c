"""The seam to Keras's `fit`: the only file that replaces methods of a model or an optimizer, or looks for the running `fit`.

Keras has no hooks in the train step, between a batch's data and its logs, or in an optimizer. Counters, data arrival, rank
synchronization and gradient reduction register functions here instead.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import keras
import tensorflow as tf

from callbacks.errors import InputError
from callbacks.model import keras_private
from callbacks.model.attached import attach, attached
from callbacks.model.state_tree import StateTree
from callbacks.model.training_loop import Loop


class FitHooks:
    """Calls registered functions in the training of one model. `fit_hooks_of(model)` makes it.

    An execution is one call of Keras's train function, which trains on `steps_per_execution` batches. Its parts, in order:

    1. `around_execution`: the function that was registered last comes first;
    2. `before_first_batch`: once in each `fit`;
    3. `instead_of_execution`: a function that returns logs ends the execution here;
    4. Keras's train function, and in it `around_train_step`: the function that was registered last comes first;
    5. `after_execution`.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._model_train_step = self._innermost_train_step = model.train_step
        self._train_step: Callable[[Any], Any] = lambda data: self._innermost_train_step(data)
        self._make_keras_train_function = model.make_train_function
        self._keras_train_function: Callable[[Any], Any] | None = None
        self._execution: Callable[[Any], Any] = self._execute
        self._before_tracing: list[Callable[[], None]] = []
        self._before_first_batch: list[Callable[[], None]] = []
        self._needs_trace = False
        self._instead: list[Callable[[Any], Any]] = []
        self._after: list[Callable[[], None]] = []
        self._history: keras.callbacks.History | None = None
        _replace(model, "train_step", tf.autograph.experimental.do_not_convert(lambda data: self._train_step(data)))
        _replace(model, "make_train_function", self._make_train_function)
        self.trace_again()

    def around_train_step(self, call: Callable[[Callable, Any], Any]) -> None:
        """Registers a function to call in place of the train step; each replica traces it.

        Args:
            call: receives the train step and the batch, and returns the logs: `lambda train_step, data: train_step(data)`.
        """
        self._train_step = functools.partial(call, self._train_step)
        self.trace_again()

    @property
    def model_train_step(self) -> Callable[[Any], Any]:
        """The model's own train step, without the registered functions."""
        return self._model_train_step

    @property
    def has_keras_train_step(self) -> bool:
        """Whether the model's train step is the one of `keras.Model`."""
        return getattr(self._model_train_step, "__func__", None) is keras.Model.train_step

    def train_with(self, train_step: Callable[[Any], Any] | None) -> None:
        """Replaces the model's train step, within the registered functions around it.

        Args:
            train_step: gets the batch and returns the logs; None for the model's own.
        """
        train_step = train_step or self._model_train_step
        if train_step is not self._innermost_train_step:
            self._innermost_train_step = train_step
            self.trace_again()

    def before_tracing(self, act: Callable[[], None]) -> None:
        """Registers a function to call each time before a train function is made, which traces the train step."""
        self._before_tracing.append(act)

    def around_execution(self, call: Callable[[Callable, Any], Any]) -> None:
        """Registers a function to call in place of an execution.

        Args:
            call: receives the execution and the data iterator, and returns the logs: `lambda execute, iterator: execute(iterator)`.
        """
        self._execution = functools.partial(call, self._execution)

    def before_first_batch(self, act: Callable[[], None], trace: bool = False) -> None:
        """Registers a function to call just before the first batch of the running `fit`. Call it in `on_train_begin`.

        Args:
            act: the function. The variables of layers and metrics that the first batch would create exist by then.
            trace: whether the function also needs the variables that only a trace of the user's train step creates.
        """
        history = getattr(self._model, "history", None)  # Keras makes a new one for each `fit`
        if self._history is not history:
            self._history, self._before_first_batch, self._needs_trace = history, [], False
        self._before_first_batch.append(act)
        self._needs_trace |= trace

    def begin_batch_of_custom_loop(self) -> None:
        """Calls the functions for before the first batch in a custom training loop, which may train without an execution."""
        if self._before_first_batch and StateTree(self._model).is_built:
            self._act_before_first_batch(None)

    def end_batch_of_custom_loop(self) -> None:
        """Checks that the functions for before the first batch were called.

        Raises:
            InputError: if they were not, since the model was not built when its first batch began.
        """
        if self._before_first_batch:
            raise InputError(
                "The checkpoint could not be restored, since the model had no variables before its first batch. "
                "Build the model before on_train_begin: call it on a batch, or give it an Input."
            )

    def instead_of_execution(self, call: Callable[[Any], Any]) -> None:
        """Registers a function that may take the place of Keras's train function.

        Args:
            call: receives the data iterator. Returns the logs to skip the batches, or None to train on them.
        """
        self._instead.append(call)

    def after_execution(self, act: Callable[[], None]) -> None:
        """Registers a function to call after each execution that has trained."""
        self._after.append(act)

    def around_epoch_logs(self, call: Callable[[Callable, dict], dict]) -> None:
        """Registers a function to call in place of the method that makes the logs of an epoch or a validation.

        Args:
            call: receives Keras's method and the logs of the last batch, and returns the logs:
                `lambda make_logs, logs: make_logs(logs)`.
        """
        make_logs = keras_private.needed(self._model, keras_private.EPOCH_LOGS)
        _replace(self._model, keras_private.EPOCH_LOGS, functools.partial(call, make_logs))

    def trace_again(self) -> None:
        """Makes the next batch trace the train step again, if a train function exists already."""
        if self._model.train_function is not None:
            self._model.make_train_function(force=True)

    def build(self, iterator: Any) -> None:
        """Creates the variables that the first batch would create, without training and without drawing from the data.

        Args:
            iterator: the data iterator of the execution.
        """
        model, spec, strategy = self._model, iterator.element_spec, self._model.distribute_strategy
        if keras_private.can_build_symbolically(model):
            if strategy.num_replicas_in_sync == 1:  # with several replicas, `fit` has built them already
                with strategy.scope():
                    keras_private.symbolic_build(model, spec)
        elif self._needs_trace or not StateTree(model).is_built or not all(getattr(each, "built", True) for each in model.metrics):
            # The registered functions are left out, since they depend on data and initial values must not.
            step = tf.function(lambda data: strategy.run(self._model_train_step, args=(data,)), autograph=False)
            step.get_concrete_function(spec)

    def _make_train_function(self, force=False):
        if self._model.train_function is None or force:
            for act in self._before_tracing:
                act()
            self._make_keras_train_function(force=True)
            self._keras_train_function = self._model.train_function
            self._model.train_function = lambda iterator: self._execution(iterator)
        return self._model.train_function

    def _execute(self, iterator):
        if self._before_first_batch:
            iterator = iterator if hasattr(iterator, "element_spec") else _OneBatch(iterator)
            self._act_before_first_batch(iterator)
        for call in self._instead:
            logs = call(iterator)
            if logs is not None:
                return logs
        assert self._keras_train_function is not None
        logs = self._keras_train_function(iterator)
        for act in self._after:
            act()
        return logs

    def _act_before_first_batch(self, iterator):
        acts, self._before_first_batch = self._before_first_batch, []
        if iterator is not None:
            self.build(iterator)
            self._needs_trace = False
        for act in acts:
            act()


class _OneBatch:
    """The iterator of `train_on_batch`, with an `element_spec`.

    Args:
        batches: Keras's iterator over the single batch.
    """

    def __init__(self, batches: Iterator[Any]):
        batch = next(batches)
        self.element_spec = tf.nest.map_structure(lambda leaf: None if leaf is None else tf.type_spec_from_value(leaf), batch)
        self._batches = iter([batch])

    def __iter__(self):
        return self._batches


def is_of_train_on_batch(iterator: Any) -> bool:
    """Returns whether an execution trains on the batch of a `train_on_batch`, and not on the data of a `fit`."""
    return isinstance(iterator, _OneBatch) or not hasattr(iterator, "element_spec")


def fit_hooks_of(model: keras.Model) -> FitHooks:
    """Returns the hooks of a model, the same object each time."""
    return attached(model, FitHooks) or attach(model, FitHooks(model))


def around_apply(optimizer: keras.optimizers.Optimizer, call: Callable[..., None]) -> None:
    """Registers a function to call in place of `optimizer.apply`.

    Args:
        optimizer: the optimizer.
        call: receives `apply`, the gradients, and optionally the variables:
            `lambda apply, grads, trainable_variables=None: apply(grads, trainable_variables)`.
    """
    _replace(optimizer, "apply", functools.partial(call, optimizer.apply))


def take_over_all_reduce(optimizer: keras.optimizers.Optimizer, call: Callable[[Callable, Any, Any], None]) -> None:
    """Registers a function that reduces gradients over the replicas before the optimizer clips and accumulates them.

    Keras reduces them after that. Its own reduction is switched off.

    Args:
        optimizer: the optimizer, not one that wraps another.
        call: receives, on each replica, Keras's method that clips, accumulates and updates; the gradients; the variables.
    """
    update = keras_private.needed(optimizer, keras_private.APPLY_GRADIENTS)
    keras_private.needed(optimizer, keras_private.ALL_REDUCE)
    _replace(optimizer, keras_private.APPLY_GRADIENTS, functools.partial(call, update))
    _replace(optimizer, keras_private.ALL_REDUCE, lambda grads_and_variables: grads_and_variables)


def _replace(owner: keras.Model | keras.optimizers.Optimizer, method: str, by: Callable) -> None:
    setattr(owner, method, by)


def tensors_of(data: Any) -> list[tf.Tensor]:
    """Returns the tensors in any structure, including the components of ragged and sparse tensors."""
    return [leaf for leaf in tf.nest.flatten(data, expand_composites=True) if isinstance(leaf, tf.Tensor)]


@dataclass(frozen=True)
class RunningFit:
    """Facts about the `fit` that runs a callback, which Keras does not pass to callbacks.

    Args:
        loop: the `fit` or the custom training loop, for the lock.
        callbacks: the list of all callbacks that Keras iterates over; only the asking callback if there is no `CallbackList`.
        has_list: whether there is a `CallbackList`.
        validates: whether `fit` has validation data; None in a custom training loop.
        source: the training data that was passed to `fit`.
        epoch_iterator: Keras's iterator over the epochs; None in a custom training loop.
        initial_epoch: the 0-based epoch that was passed to `fit`.
    """

    loop: Loop
    callbacks: list[keras.callbacks.Callback]
    has_list: bool
    validates: bool | None
    source: Any = None
    epoch_iterator: Any = None
    initial_epoch: int = 0

    @property
    def is_custom_loop(self) -> bool:
        """Whether a custom training loop runs the callbacks, and not `fit`."""
        return not self.loop.is_fit


def running_fit(asking: keras.callbacks.Callback) -> RunningFit:
    """Searches the call stack for the `fit` that runs a callback. Call it in `on_train_begin`.

    Keras has no public way to find the other callbacks of a `fit`, or whether it has validation data.
    """
    callbacks, has_list, validates, loop = [asking], False, None, Loop()
    source, epoch_iterator, initial_epoch = None, None, 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and asking in caller.callbacks:
            callbacks, has_list = caller.callbacks, True
        if caller is asking.model and frame.f_code.co_name == "fit":
            source, epoch_iterator = frame.f_locals.get("x"), frame.f_locals.get("epoch_iterator")
            loop = Loop(frame)
            validates = frame.f_locals.get("validation_data") is not None
            initial_epoch = frame.f_locals.get("initial_epoch", 0)
            break
        frame = frame.f_back
    return RunningFit(loop, callbacks, has_list, validates, source, epoch_iterator, initial_epoch)
