"""Callbacks can be copied at any time, as tuners and job runners do; a copy trains and saves like a new callback."""

import copy
import pickle
import shutil

import keras
import pytest
from small import Do, fit, names, small_model

from callbacks import BatchAwareCheckpoint, GlobalStepCheckpoint, GlobalStepTensorBoard

COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda callback: pickle.loads(pickle.dumps(callback))}


def batch_aware(directory):
    return BatchAwareCheckpoint(
        keras.callbacks.ModelCheckpoint(str(directory / "b{batch}.weights.h5"), save_freq=1, save_weights_only=True)
    )


CALLBACKS = {
    "GlobalStepCheckpoint": lambda directory: GlobalStepCheckpoint(directory / "b{batch}.weights.h5", save_freq=1, keep_last=2),
    "BatchAwareCheckpoint": batch_aware,
    "GlobalStepTensorBoard": lambda directory: GlobalStepTensorBoard(directory, update_freq=1),
}


def eager_model():
    return small_model(run_eagerly=True)


def trained(callback, directory, *others):
    """Trains a new model with a callback. Returns the files in the directory, without the random parts of their names."""
    shutil.rmtree(directory, ignore_errors=True)
    keras.utils.set_random_seed(0)
    fit(eager_model(), callback, *others, batches=3)
    return {str(path.relative_to(directory)).partition(".tfevents")[0] for path in directory.rglob("*") if path.is_file()}


CASES = [
    pytest.param(how, callback, marks=pytest.mark.slow if (callback, how) == ("BatchAwareCheckpoint", "copy") else [])
    for how in COPIES
    for callback in CALLBACKS
]


@pytest.mark.slow
@pytest.mark.parametrize("how, callback", CASES)
def test_a_copy_trains_and_saves_like_the_original(tmp_path, how, callback):
    make, copied = COPIES[how], {}
    original = CALLBACKS[callback](tmp_path / "run")

    def take(when):
        copied[when] = make(original)

    take("before training")
    expected = trained(original, tmp_path / "run", Do(2, lambda: take("after a batch")))
    take("between two fits")
    assert trained(original, tmp_path / "run") == expected
    take("after training")
    if "Checkpoint" in callback:
        last = {"b2.weights.h5", "b3.weights.h5"}
        assert expected == (last if callback == "GlobalStepCheckpoint" else last | {"b1.weights.h5"})
    else:
        assert {"batches/events.out", "train/events.out"} <= expected
    for when, each in copied.items():
        assert type(each) is type(original) and each is not original
        if isinstance(each, GlobalStepTensorBoard):
            assert each.get_state() == {"kept_seconds": 0}  # the state of a run is not a setting
        assert trained(each, tmp_path / "run") == expected, when
    assert names(tmp_path) == ["run"]
