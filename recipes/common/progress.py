"""How far a rank is, for the launcher: its report, its restarts and `--stall-timeout` go by it."""

import keras

from callbacks import counters_of
from launch.world import report_progress


class Progress(keras.callbacks.Callback):
    """Tells the launcher the global batch after each batch, of validation too; nothing without a launcher.

    It never asks the device. Under `steps_per_execution`, where an epoch's last execution may be a short one, the number may
    be ahead until the counters are next read.
    """

    def on_train_begin(self, logs=None):
        counters_of(self.model)  # which count from now on

    def on_train_batch_end(self, batch, logs=None):
        report_progress(counters_of(self.model).batch_bound)

    def on_test_batch_end(self, batch, logs=None):
        report_progress(counters_of(self.model).batch_bound)
