"""Two trainings that take turns, a batch each: a shared machine changes its speed within seconds, and so for both alike."""

import threading
import time
from collections.abc import Callable

import keras
import numpy as np

LONGEST_TURN = 600  # seconds


class Turns(keras.callbacks.Callback):
    """Takes turns with another `fit`, batch by batch, and notes seconds of the clock and of CPU time.

    To be the last of the callbacks, so that what the others do counts.

    Args:
        mine: released when the turn is this one's.
        others: released when it has ended.

    Raises:
        RuntimeError: if the other `fit` gives no turn, because it has failed.
    """

    def __init__(self, mine: threading.Semaphore, others: threading.Semaphore):
        super().__init__()
        self._mine, self._others = mine, others
        self.taken: list[np.ndarray] = []

    def on_train_begin(self, logs=None):
        self._wait()

    def _wait(self):
        if not self._mine.acquire(timeout=LONGEST_TURN):
            raise RuntimeError("The other fit gives no turn.")
        self._began = _now()

    def on_train_batch_end(self, batch, logs=None):
        if batch >= 2:
            self.taken.append(_now() - self._began)
        self._others.release()
        self._wait()


def _now():
    return np.array((time.perf_counter(), time.process_time()))


def by_turns(first: Callable[[Turns], object], second: Callable[[Turns], object]) -> np.ndarray:
    """What the batches of two trainings take.

    Args:
        first: calls `fit` with the callback that it is given, for as many batches and epochs as the second; in a thread.
        second: the same.

    Returns:
        Seconds `[pairs, 2, 2]`: of the first and of the second, by the clock and of CPU time; without each epoch's first two
        batches.
    """
    of_first, of_second = threading.Semaphore(1), threading.Semaphore(0)
    firsts, seconds = Turns(of_first, of_second), Turns(of_second, of_first)

    def fit_first():
        try:
            first(firsts)
        finally:
            of_second.release()

    beside = threading.Thread(target=fit_first, daemon=True)
    beside.start()
    second(seconds)
    beside.join()
    return np.stack([firsts.taken, seconds.taken], axis=1)
