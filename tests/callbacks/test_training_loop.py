"""Whether a training loop of this process still runs, as another thread sees it."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from small import Do, fail, fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError
from callbacks.disk.lock import Lock
from callbacks.model.fit_hooks import running_fit
from callbacks.model.training_loop import Loop


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


@pytest.mark.parametrize("act", [lambda: None, fail], ids=["as planned", "by an error"])
def test_the_data_of_an_ended_fit_are_freed_though_the_callback_is_kept(tmp_path, act):
    def train(checkpoint):
        data = np.zeros((80, 4), "float32")
        freed.append(weakref.ref(data))
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(data, data[:, 0], 8, verbose=0, callbacks=[checkpoint, Do(5, act)])

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


def test_a_second_fit_of_this_process_is_refused_while_the_first_one_runs(tmp_path):
    template, runs, may_end = str(tmp_path / "b{batch}.weights.h5"), threading.Event(), threading.Event()

    def wait():
        runs.set()
        assert may_end.wait(300)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fit, small_model(), GlobalStepCheckpoint(template, save_freq=4), Do(5, wait))
        assert runs.wait(300)
        with pytest.raises(
            InputError, match=r"b\{batch\}\.weights\.h5 is in use by another training loop of this process, since 20"
        ):
            fit(small_model(), GlobalStepCheckpoint(template))
        may_end.set()
        first.result()
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=4))
    assert names(tmp_path) == [f"b{batch}.weights.h5" for batch in (10, 4, 8)]


def test_a_fit_of_a_model_in_training_is_refused_if_both_save(tmp_path):
    model, refused = small_model(), []

    def train_in_callback():
        with pytest.raises(InputError, match=r"^This model is in training: ") as error:
            fit(model, GlobalStepCheckpoint(tmp_path / "inner_{batch}.weights.h5"))
        refused.append(error)

    checkpoints = [GlobalStepCheckpoint(tmp_path / f"{name}_{{batch}}.weights.h5", save_freq=4) for name in "ab"]
    fit(model, *checkpoints, Do(3, train_in_callback))
    fit(model, *checkpoints)
    assert len(refused) == 1
    assert names(tmp_path) == sorted(f"{name}_{batch}.weights.h5" for name in "ab" for batch in (4, 8, 10, 12, 16, 20))


def test_a_failed_fit_does_not_block_another_fit_of_this_process(tmp_path):
    template = str(tmp_path / "b{batch}.weights.h5")
    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(fit, small_model(), GlobalStepCheckpoint(template, save_freq=4), Do(5, fail))
        assert isinstance(failed.exception(), InterruptedError)
        with pytest.raises(InterruptedError):  # in another thread, while the first one still runs
            fit(small_model(), GlobalStepCheckpoint(template, save_freq=4), Do(5, fail))
        fit(small_model(), GlobalStepCheckpoint(template, save_freq=4))
    assert names(tmp_path) == [f"b{batch}.weights.h5" for batch in (10, 4, 8)]
    assert not list(tmp_path.glob(".lock*"))


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
