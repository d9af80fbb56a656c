"""Cost of the callback between two saves: host time per batch, and time of the training loop with and without it."""

import statistics
import tempfile
import time

import keras
import tensorflow as tf

from benchmarks.own_process import in_own_process
from callbacks import GlobalStepCheckpoint

CALLS = 100_000
BATCHES, ROUNDS = 2000, 7
NEVER = 10**9  # batches


class Probe(keras.callbacks.Callback):
    """Calls another callback of the same `fit` many times, at the end of the first batch."""

    def __init__(self, probed: keras.callbacks.Callback):
        super().__init__()
        self._probed = probed
        self.seconds = 0.0  # per call

    def on_train_batch_end(self, batch, logs=None):
        if not self.seconds:
            began = time.perf_counter()
            for _ in range(CALLS):
                self._probed.on_train_batch_end(batch, logs=logs)
            self.seconds = (time.perf_counter() - began) / CALLS


def _model(steps_per_execution):
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(10)])
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    return model


def _train(model, batches, *callbacks):
    """Returns seconds per batch."""
    data = tf.data.Dataset.from_tensors((tf.zeros([20, 8]), tf.zeros([20, 10]))).repeat()
    marks: list[float] = []
    mark = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: marks.append(time.perf_counter()))
    model.fit(data, steps_per_epoch=batches, callbacks=[*callbacks, mark], verbose=0, shuffle=False)
    return (marks[-1] - marks[0]) / (batches - model.steps_per_execution)


def measure(steps_per_execution: int) -> list[float]:
    """Returns seconds per batch: in the callback, in an empty callback, in the loop without and with the callback."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = GlobalStepCheckpoint(f"{directory}/{{batch}}.weights.h5", save_freq=NEVER)
        ours, empty = Probe(checkpoint), Probe(keras.callbacks.Callback())
        plain, counted = _model(steps_per_execution), _model(steps_per_execution)
        _train(plain, 2 * steps_per_execution, empty)
        _train(counted, 2 * steps_per_execution, checkpoint, ours)
        rounds = [(_train(plain, BATCHES), _train(counted, BATCHES, checkpoint)) for _ in range(ROUNDS)]
    loops = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return [ours.seconds / steps_per_execution, empty.seconds / steps_per_execution, *loops]


def main() -> None:
    """Prints the time of a call and of an empty callback, and the medians of the loop."""
    print("between saves, us per batch    in the callback   in an empty one   loop without it   with it")
    for steps in (1, 8):
        columns = [seconds * 1e6 for seconds in in_own_process(measure, steps)]
        print(f"{f'steps_per_execution={steps}':<31}" + "{:>15.2f}{:>18.2f}{:>18.0f}{:>10.0f}".format(*columns), flush=True)


if __name__ == "__main__":
    main()
