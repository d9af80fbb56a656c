"""Reports progress to the launcher, which uses it for its report, its restarts and `--stall-timeout`."""

import keras

from callbacks import counters_of
from launch.world import report_progress


class Heartbeat(keras.callbacks.Callback):
    """Reports the global batch to the launcher after each batch, validation included; does nothing without a launcher.

    It never reads from the device. With `steps_per_execution`, the last execution of an epoch may be short, so the reported batch
    may be too high until the counters are read again.
    """

    def on_train_begin(self, logs=None):
        counters_of(self.model)  # starts counting

    def on_train_batch_end(self, batch, logs=None):
        report_progress(counters_of(self.model).batch_bound)

    def on_test_batch_end(self, batch, logs=None):
        report_progress(counters_of(self.model).batch_bound)
