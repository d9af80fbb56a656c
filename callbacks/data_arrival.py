"""When a batch reaches the train step: what passes until then, training waits for its data."""

import time
from collections.abc import Callable

import keras
import tensorflow as tf

_ATTRIBUTE = "_data_arrival"


class DataArrival:
    """The moment at which the batch of the execution under way reached the first replica of this process.

    The compiled train step calls back for it, as TensorFlow's own clock is not to be had under op determinism. That costs
    some 20 us, so it is not done within an execution of several batches, and XLA could not do it.

    Attributes:
        at: on `clock`; 0 before the first batch.
        clock: seconds.
    """

    def __init__(self, model: keras.Model):
        self.at = 0.0
        self.clock: Callable[[], float] = time.perf_counter
        train_step = model.train_step

        def watched_train_step(data):
            if tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group) == 0:
                leaves = tf.nest.flatten(data, expand_composites=True)
                with tf.control_dependencies([leaf for leaf in leaves if tf.is_tensor(leaf)]), tf.device("/cpu:0"):
                    tf.numpy_function(self._arrive, [], [])
            return train_step(data)

        model.train_step = tf.autograph.experimental.do_not_convert(watched_train_step)
        model.make_train_function(force=True)  # `fit` has made one already

    def _arrive(self):
        self.at = self.clock()


def data_arrival_of(model: keras.Model) -> DataArrival | None:
    """The same object each time; None for a model that XLA compiles, that runs eagerly, or in executions of several batches."""
    if model.jit_compile or model.run_eagerly or model.steps_per_execution > 1:
        return None
    if not hasattr(model, _ATTRIBUTE):
        setattr(model, _ATTRIBUTE, DataArrival(model))
    return getattr(model, _ATTRIBUTE)
