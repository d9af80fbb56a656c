"""What TensorBoard's callbacks cost a step of 5 ms: none, ours at its defaults, and Keras's own.

One `fit` for each, by turns, in many rounds; what is added is the median of the differences within a round, with the quartiles
beside it. The step sleeps its 5 ms, so that the CPU time of the process is that of the loop and its callbacks; it says more than
the clock on a machine that does other work too.
"""

import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepTensorBoard

STEP = 5e-3  # seconds
BATCHES, ROUNDS = 200, 21
MAKERS = {
    "none": None,
    "GlobalStepTensorBoard()": lambda where: GlobalStepTensorBoard(where),
    "keras TensorBoard()": lambda where: keras.callbacks.TensorBoard(where),
    "keras TensorBoard(update_freq=50)": lambda where: keras.callbacks.TensorBoard(where, update_freq=50),
    "keras TensorBoard(update_freq=1)": lambda where: keras.callbacks.TensorBoard(where, update_freq=1),
}


class Timed(keras.callbacks.Callback):
    """The time from the begin of an epoch's first batch to that of its last, callbacks included."""

    def on_epoch_begin(self, epoch, logs=None):
        self.begins: list[tuple[float, float]] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.begins.append((time.perf_counter(), time.process_time()))

    @property
    def per_batch(self) -> np.ndarray:
        """Seconds of the clock, and of CPU time."""
        return np.subtract(self.begins[-1], self.begins[0]) / (len(self.begins) - 1)


def main() -> None:
    """Prints a batch's time, and what each callback adds to it."""
    models = {name: _model() for name in MAKERS}
    x, y = np.zeros((BATCHES, 8), "float32"), np.zeros((BATCHES, 1), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(1).prefetch(8)
    taken: dict[str, list[np.ndarray]] = {name: [] for name in MAKERS}
    with tempfile.TemporaryDirectory() as directory:
        callbacks = {name: [make(f"{directory}/{name}")] if make else [] for name, make in MAKERS.items()}
        for i in range(ROUNDS):
            for name in list(MAKERS)[:: 1 if i % 2 else -1]:
                timed = Timed()
                models[name].fit(data, verbose=0, shuffle=False, callbacks=[timed, *callbacks[name]])
                taken[name].append(timed.per_batch)
    print("a step of 5 ms with TensorBoard's callback        clock, ms   added, %, quartiles   CPU, ms   added, %, quartiles")
    for name, times in taken.items():
        clock, cpu = np.median(times, axis=0) * 1e3
        added = np.percentile(np.subtract(times, taken["none"]) / STEP * 100, [25, 50, 75], axis=0)
        of_clock, of_cpu = (f"{middle:.1f} ({low:.1f}, {high:.1f})" for low, middle, high in added.T)
        print(f"{name:<46}{clock:>12.3f}{of_clock:>23}{cpu:>10.3f}{of_cpu:>23}")


def _model():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    train_step = model.train_step

    def slow_train_step(data):
        began = _sleep(data[0])
        with tf.control_dependencies([began]):
            return train_step((tf.identity(data[0]), data[1]))

    model.train_step = slow_train_step
    return model


def _sleep(x):
    def sleep(x):
        time.sleep(STEP)
        return x

    return tf.numpy_function(sleep, [x], tf.float32)


if __name__ == "__main__":
    main()
