"""Time that TensorBoard callbacks add to a step of 5 ms: ours with default arguments, and Keras's.

Two models, one with the callback and one without, train in turns, batch by batch. Each round does so twice with new models, because
the model that begins has a small advantage. The added time is the mean over the pairs of batches in a round, which includes points
that only some batches write; the result is the median of the rounds, with minimum and maximum. The step sleeps for 5 ms, so CPU
time is that of the loop and its callbacks.
"""

import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.turns import by_turns
from callbacks import GlobalStepTensorBoard

STEP = 5e-3  # seconds
BATCHES, ROUNDS = 152, 15  # as many points as in a long run, and two batches of warm-up
OUTLIER = 20  # steps; a larger difference within a pair has another cause
MAKERS: dict[str, Callable[[str], list[keras.callbacks.Callback]]] = {
    "none": lambda directory: [],
    "GlobalStepTensorBoard()": lambda directory: [GlobalStepTensorBoard(directory)],
    "keras TensorBoard()": lambda directory: [keras.callbacks.TensorBoard(directory)],
    "keras TensorBoard(update_freq=50)": lambda directory: [keras.callbacks.TensorBoard(directory, update_freq=50)],
    "keras TensorBoard(update_freq=1)": lambda directory: [keras.callbacks.TensorBoard(directory, update_freq=1)],
}


def measure(make: Callable[[str], list[keras.callbacks.Callback]]) -> np.ndarray:
    """Returns the percentage of a step that callbacks add, in wall and CPU time."""
    x, y = np.zeros((BATCHES, 8), "float32"), np.zeros((BATCHES, 1), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(1).prefetch(8)

    def fit(callbacks):
        model = _model()
        return lambda turns: model.fit(data, verbose=0, shuffle=False, callbacks=[*callbacks, turns])

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        one_order = by_turns(fit([]), fit(make(second)))
        other_order = by_turns(fit(make(first)), fit([]))[:, ::-1]
    differences = np.diff(np.concatenate([one_order, other_order]), axis=1)[:, 0]
    is_ours = np.abs(differences[:, 0]) < OUTLIER * STEP
    return differences[is_ours].mean(axis=0) / STEP * 100


def main() -> None:
    """Prints the time that each callback adds."""
    added: dict[str, list[np.ndarray]] = {name: [] for name in MAKERS}
    for _ in range(ROUNDS):
        for name, make in MAKERS.items():
            added[name].append(measure(make))
    print(f"added to a step of {STEP * 1e3:.0f} ms, %, median of {ROUNDS} rounds (range)         wall                   CPU time")
    for name, rounds in added.items():
        of_clock, of_cpu = (
            f"{middle:.1f} ({low:.1f} to {high:.1f})" for low, middle, high in np.percentile(rounds, [0, 50, 100], axis=0).T
        )
        print(f"{name:<46}{of_clock:>26}{of_cpu:>26}")


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
