"""Whether a training loop of this process still runs, though Python reuses addresses of frames and identifiers of threads."""

import dataclasses
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest
from small import fit, small_model

from callbacks.disk.lock import Lock
from callbacks.model.fit_hooks import running_fit
from callbacks.model.training_loop import Loop


def test_a_failed_fit_counts_as_ended_though_a_later_frame_has_its_address_and_its_iterator_awaits_garbage_collection():
    loops, running = [], []

    class Fail(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            loops.append(running_fit(self).loop)

        def on_train_batch_end(self, batch, logs=None):
            running.append(loops[0].is_running)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(small_model(), Fail())
    assert running == [True]
    assert not dataclasses.replace(loops[0], fit=id(sys._getframe())).is_running


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
