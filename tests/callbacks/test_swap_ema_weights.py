"""`SwapEMAWeights` with our callback, in any order: files equal those of stock `ModelCheckpoint`, and a resume is exact."""

import keras
import numpy as np
import pytest
from compare import assert_same_weights
from small import arrays, fit, names, small_model

from callbacks import GlobalStepCheckpoint

EPOCHS, BATCHES = 3, 4


class Crash(keras.callbacks.Callback):
    """Raises after a batch, counted from the begin of training, or when an epoch is over."""

    def __init__(self, *, batch=None, epoch=None):
        super().__init__()
        self.batch, self.epoch, self.running = batch, epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:  # here, because the save of an epoch comes after `on_epoch_end` of every callback
            raise InterruptedError
        self.running = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.running * BATCHES + batch + 1 == self.batch:
            raise InterruptedError


def averaged():
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    return small_model(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9), run_eagerly=True)


def train(*callbacks):
    """Returns weights, optimizer and history at the end. The data has the same order in each process."""
    model = averaged()
    history = fit(model, *callbacks, epochs=EPOCHS, batches=BATCHES, shuffle=False)
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)], (history.epoch, history.history)


def assert_same_end(one, other):
    assert one[1] == other[1]
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)


def in_order(swap_first, checkpoint):
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    return [swap, checkpoint] if swap_first else [checkpoint, swap]


@pytest.mark.parametrize("swap_first", [True, False])
def test_with_swapped_averages_a_file_equals_that_of_a_stock_checkpoint_in_the_same_place(tmp_path, swap_first):
    for name, kind in (("stock", keras.callbacks.ModelCheckpoint), ("ours", GlobalStepCheckpoint)):
        checkpoint = kind(str(tmp_path / name / "e{epoch}.weights.h5"), save_weights_only=True)
        (tmp_path / name).mkdir()
        train(*in_order(swap_first, checkpoint))
    assert names(tmp_path / "ours") == ["e1.weights.h5", "e2.weights.h5", "e3.weights.h5"]
    for name in names(tmp_path / "ours"):
        assert_same_weights(tmp_path / "stock" / name, tmp_path / "ours" / name)


CRASHES = {  # where training crashes, how often it saves, and from which batch it resumes
    "in the middle of an epoch": ({"batch": BATCHES + 3}, 3, BATCHES + 2),
    "after the last batch of an epoch": ({"batch": BATCHES}, 1, BATCHES),
    "at the end of an epoch": ({"epoch": 1}, "epoch", BATCHES),
    "in the middle of the next epoch": ({"batch": 2 * BATCHES - 1}, "epoch", BATCHES),
}


@pytest.fixture(scope="module")
def whole():
    """The result of a training without checkpoints."""
    return train(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))


@pytest.mark.parametrize("swap_first", [True, False])
@pytest.mark.parametrize("crash", [pytest.param(each, marks=pytest.mark.slow if "the next" in each else []) for each in CRASHES])
def test_with_swapped_averages_a_resume_ends_as_without_a_crash(tmp_path, whole, swap_first, crash):
    where, save_freq, resumes_from = CRASHES[crash]

    def checkpoint():
        return GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=save_freq, resume=True)

    with pytest.raises(InterruptedError):
        train(*in_order(swap_first, checkpoint()), Crash(**where))
    second = checkpoint()
    assert_same_end(whole, train(*in_order(swap_first, second)))
    assert second.resumed_from.batch == resumes_from


def test_averages_that_are_swapped_for_validation_are_exact_after_a_resume(tmp_path):
    def run(*callbacks):
        model = averaged()
        options = dict(epochs=EPOCHS, batches=BATCHES, shuffle=False, validation_data=arrays(2))
        history = fit(model, keras.callbacks.SwapEMAWeights(), *callbacks, **options)
        return [v.numpy() for v in (*model.variables, *model.optimizer.variables)], (history.epoch, history.history)

    whole = run()
    for crash in ({"batch": BATCHES + 3}, {"epoch": 2}):
        with pytest.raises(InterruptedError):
            run(GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=2, resume=True), Crash(**crash))
    last = GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", save_freq=2, resume=True)
    assert_same_end(whole, run(last))
    assert last.resumed_from.batch == 2 * BATCHES
