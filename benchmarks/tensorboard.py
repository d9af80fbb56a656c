"""What TensorBoard's callbacks add to a step of 5 ms: ours at its defaults, and Keras's own.

Two models train, one with the callback and one without, a batch each by turns. A round does so twice, with new models, as the one
that begins has it a little easier. What is added is the mean over a round's pairs of batches, so that the points that only some
batches write count; of the rounds the median, and the extremes. The step sleeps its 5 ms, so CPU time is that of the loop and its
callbacks.
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
BATCHES, ROUNDS = 152, 15  # as many points as in a long run, and two batches that do not count
OUTLIER = 20  # a pair with a difference of that many steps was held up by something else
MAKERS: dict[str, Callable[[str], list[keras.callbacks.Callback]]] = {
    "none": lambda directory: [],
    "GlobalStepTensorBoard()": lambda directory: [GlobalStepTensorBoard(directory)],
    "keras TensorBoard()": lambda directory: [keras.callbacks.TensorBoard(directory)],
    "keras TensorBoard(update_freq=50)": lambda directory: [keras.callbacks.TensorBoard(directory, update_freq=50)],
    "keras TensorBoard(update_freq=1)": lambda directory: [keras.callbacks.TensorBoard(directory, update_freq=1)],
}


def measure(make: Callable[[str], list[keras.callbacks.Callback]]) -> np.ndarray:
    """Percent of a step that callbacks add, by the clock and of CPU time."""
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
    """Prints what each callback adds."""
    added: dict[str, list[np.ndarray]] = {name: [] for name in MAKERS}
    for _ in range(ROUNDS):
        for name, make in MAKERS.items():
            added[name].append(measure(make))
    print(f"added to a step of {STEP * 1e3:.0f} ms, %, median of {ROUNDS} rounds (extremes)      clock                  CPU time")
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
