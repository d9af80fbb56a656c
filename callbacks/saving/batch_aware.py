"""`BatchAwareCheckpoint`: `GlobalStepCheckpoint` with the settings of a stock `ModelCheckpoint`."""

import keras

from callbacks.saving.checkpoint import GlobalStepCheckpoint


class BatchAwareCheckpoint(GlobalStepCheckpoint):
    """Saves by the cumulative batch with the settings of a stock `keras.callbacks.ModelCheckpoint`.

    Use it for code that wraps a ModelCheckpoint to put the batch into the name:

    ```python
    stock = keras.callbacks.ModelCheckpoint("model-batch-{batch}.weights.h5", save_freq=50, save_weights_only=True)
    model.fit(data, callbacks=[BatchAwareCheckpoint(stock)])   # model-batch-50.weights.h5, model-batch-100.weights.h5, ...
    ```

    New code should use `GlobalStepCheckpoint`, its base class.

    Args:
        model_checkpoint: the callback with the settings. Do not pass it to `fit` as well.

    Raises:
        InputError: if GlobalStepCheckpoint does not accept the settings, for example a legacy `.h5` file of a whole model.
    """

    def __init__(self, model_checkpoint: keras.callbacks.ModelCheckpoint):
        super().__init__(
            model_checkpoint.filepath,
            monitor=model_checkpoint.monitor,
            verbose=model_checkpoint.verbose,
            save_best_only=model_checkpoint.save_best_only,
            save_weights_only=model_checkpoint.save_weights_only,
            mode=_mode_of(model_checkpoint),
            save_freq=model_checkpoint.save_freq,
            initial_value_threshold=model_checkpoint.best,
        )


def _mode_of(checkpoint: keras.callbacks.ModelCheckpoint) -> str:
    """Returns the direction in which a checkpoint's metric improves: `"min"`, `"max"`, or `"auto"` if it is not chosen yet."""
    if hasattr(checkpoint, "mode"):  # not in the oldest versions
        return checkpoint.mode
    return "min" if checkpoint.monitor_op(0.0, 1.0) else "max"
