"""Observes when a batch reaches the train step. Until then, training waits for its data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.model.attached import OWN, attach, attached
from callbacks.model.fit_hooks import fit_hooks_of, tensors_of


class DataArrival:
    """Calls back when a batch reaches the first replica of this process, for one batch in `every` from the first of each epoch on.

    The compiled train step makes the call, because op determinism forbids TensorFlow's own clock. A call costs about 100 us,
    so it is not made for each batch, nor where several batches are one execution. XLA does not support it.

    Attributes:
        acts: name -> function to call, in a TensorFlow thread.
        every: the sampling interval, in batches.
    """

    def __init__(self, model: keras.Model, every: int):
        self.acts: dict[str, Callable[[], None]] = {}
        self.every = every
        with tf.device("/cpu:0"):
            self._batches = tf.Variable(0, trainable=False, dtype="int64", name=f"{OWN}batches_that_arrived")
        takes_a_batch = [tf.TensorSpec([], tf.int64)]
        self._if_sampled = tf.function(self._call_back, takes_a_batch, autograph=False).get_concrete_function()
        self._else = tf.function(lambda before: tf.constant(1, "int64"), takes_a_batch, autograph=False).get_concrete_function()
        fit_hooks_of(model).around_train_step(self._watch)

    def begin_epoch(self) -> None:
        """Makes the next batch one of the sample. The first batch of an epoch often waits longer, so its wait must be known."""
        self._batches.assign(0)

    def _watch(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        if tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group) == 0:
            with tf.device("/cpu:0"):
                with tf.control_dependencies(tensors_of(data)):
                    before = self._batches.read_value()
                is_sampled = tf.equal(before % self.every, 0)
                # Not `tf.cond`: in a graph with control flow, TensorFlow takes longer over each op.
                (one,) = tf.raw_ops.StatelessIf(
                    cond=is_sampled, input=[before], Tout=[tf.int64], then_branch=self._if_sampled, else_branch=self._else
                )
                self._batches.assign_add(one)
        return train_step(data)

    def _call_back(self, before):
        # Not stateful: other stateful ops of the step would wait for it.
        one = tf.numpy_function(self._arrive, [before], tf.int64, stateful=False)
        return tf.ensure_shape(one, [])

    def _arrive(self, before):
        for act in list(self.acts.values()):
            act()
        return np.int64(1)


def data_arrival_of(model: keras.Model, every: int) -> DataArrival | None:
    """Returns the model's only DataArrival, which samples at least one batch in `every`.

    Returns None if XLA compiles the model, or it runs eagerly, or an execution has several batches.
    """
    if model.jit_compile or model.run_eagerly or model.steps_per_execution > 1:
        return None
    arrival = attached(model, DataArrival) or attach(model, DataArrival(model, every))
    if every < arrival.every:
        arrival.every = every
        fit_hooks_of(model).trace_again()
    return arrival
