"""Two trainings that alternate batch by batch, so that changes in the speed of a shared machine affect both alike."""

import threading
import time
from collections.abc import Callable

import keras
import numpy as np

LONGEST_TURN = 600  # seconds


class Turns(keras.callbacks.Callback):
    """Alternates with another `fit`, batch by batch, and records wall and CPU seconds.

    Make it the last callback, so that the time of the others counts.

    Args:
        mine: released when this turn begins.
        others: released when this turn ends.

    Raises:
        RuntimeError: if the other `fit` does not release the turn, because it has failed.
    """

    def __init__(self, mine: threading.Semaphore, others: threading.Semaphore):
        super().__init__()
        self._mine, self._others = mine, others
        self.taken: list[np.ndarray] = []
        self._began = np.zeros(2)

    def on_train_begin(self, logs=None):
        self._wait()

    def _wait(self):
        if not self._mine.acquire(timeout=LONGEST_TURN):
            raise RuntimeError("The other fit has not released the turn.")
        self._began = _now()

    def on_train_batch_end(self, batch, logs=None):
        if batch >= 2:
            self.taken.append(_now() - self._began)
        self._others.release()
        self._wait()


def _now():
    return np.array((time.perf_counter(), time.process_time()))


def by_turns(first: Callable[[Turns], object], second: Callable[[Turns], object]) -> np.ndarray:
    """Runs two trainings in turns, and measures their batches.

    Args:
        first, second: call `fit` with the given callback, for the same number of batches and epochs. The first runs in a thread.

    Returns:
        Seconds `[pairs, 2, 2]`: of the first and of the second, in wall and CPU time, without the first two batches of each epoch.
    """
    of_first, of_second = threading.Semaphore(1), threading.Semaphore(0)
    firsts, seconds = Turns(of_first, of_second), Turns(of_second, of_first)

    def fit_first():
        try:
            first(firsts)
        finally:
            of_second.release()

    thread = threading.Thread(target=fit_first, daemon=True)
    thread.start()
    second(seconds)
    thread.join()
    return np.stack([firsts.taken, seconds.taken], axis=1)
