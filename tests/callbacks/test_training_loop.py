"""Whether a training loop of this process still runs, as another thread sees it."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from small import Do, fit, small_model

from callbacks import GlobalStepCheckpoint
from callbacks.disk.lock import Lock
from callbacks.model.fit_hooks import running_fit
from callbacks.model.training_loop import Loop


def fail():
    raise InterruptedError


class Ask(keras.callbacks.Callback):
    """Asks in each batch, from another thread, whether the loop of this `fit` runs."""

    def __init__(self):
        super().__init__()
        self.answers = []

    def ask(self):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: self.loop.is_running).result()

    def on_train_begin(self, logs=None):
        self.loop = running_fit(self).loop

    def on_train_batch_end(self, batch, logs=None):
        self.answers.append(self.ask())


def test_a_fit_runs_until_it_fails_though_its_traceback_is_kept():
    ask = Ask()
    with pytest.raises(InterruptedError) as kept:
        fit(small_model(), ask, Do(3, fail))
    assert ask.answers == [True] * 3
    assert not ask.ask()
    assert kept.traceback


def test_a_fit_runs_until_it_returns():
    ask = Ask()
    fit(small_model(), ask)
    assert ask.answers == [True] * 10
    assert not ask.ask()


@pytest.mark.parametrize("end", ["as planned", "by an error"])
def test_the_data_of_an_ended_fit_are_freed_though_the_callback_is_kept(tmp_path, end):
    def train(checkpoint):
        data = np.zeros((80, 4), "float32")
        freed.append(weakref.ref(data))
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(data, data[:, 0], 8, verbose=0, callbacks=[checkpoint, *([Do(5, fail)] if end == "by an error" else [])])

    freed = []
    kept = GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=4)
    try:
        train(kept)
    except InterruptedError:
        deadline = time.monotonic() + 300  # the next check of the lock's thread
        while list(tmp_path.glob(".lock*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    gc.collect()
    assert freed[0]() is None


def test_an_ended_thread_does_not_block_a_training_loop_though_a_later_thread_has_its_identifier(tmp_path):
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    ended._ident = threading.get_ident()
    first, second = Lock(str(tmp_path / "a"), str(tmp_path)), Lock(str(tmp_path / "a"), str(tmp_path))
    first.acquire(Loop(thread=ended))

    def take():
        second.acquire()
        second.check()
        second.release()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(take).result()
