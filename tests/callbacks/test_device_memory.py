"""A save does not make a GPU run out of memory: without room for a second copy, training waits for the values."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_weights
from small import fit, small_model

import callbacks.saving.checkpoint
import callbacks.saving.checkpoint_maker
from callbacks import GlobalStepCheckpoint
from callbacks.state.device_memory import DeviceMemory

GPUS = {"/gpu:0": 1000, "/gpu:1": 1000}


def on(device, numbers):
    """Returns the description of a float32 tensor on a device."""
    return SimpleNamespace(
        device=f"/job:localhost/replica:0/task:0/device:{device}", shape=tf.TensorShape([numbers]), dtype=tf.float32
    )


@pytest.mark.parametrize("peak, full", [(0, []), (600, []), (601, ["/gpu:0"])])
def test_a_gpu_is_full_where_its_peak_and_a_copy_of_the_values_exceed_its_limit(peak, full):
    memory = DeviceMemory(peak={"/gpu:0": peak, "/gpu:1": 0}.get, limits=lambda: GPUS)
    assert memory.full([on("GPU:0", 60), on("GPU:0", 40), on("GPU:1", 250), on("CPU:0", 10**9)]) == full


def test_the_peak_of_the_first_save_counts_as_later_ones_hold_copies():
    peaks = iter([600, 1000])
    memory = DeviceMemory(peak=lambda device: next(peaks), limits=lambda: GPUS)
    assert [memory.full([on("GPU:0", 100)]) for _ in range(2)] == [[], []]


def test_a_device_of_no_known_limit_has_room():
    assert DeviceMemory(peak=lambda device: 0, limits=dict).full([on("GPU:0", 10**9)]) == []


class Full(DeviceMemory):
    """A device without room."""

    def full(self, tensors):
        return ["/gpu:0"] if list(tensors) else []


def test_training_waits_for_a_full_gpu_and_says_so_once_and_the_files_are_the_same(tmp_path, monkeypatch):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "room" / "b{batch}.weights.h5"), save_freq=4))
    fetched = []
    submit = callbacks.saving.checkpoint.Writer.submit

    def submit_fetched(writer, path, write):
        fetched.append(path)
        submit(writer, path, write)

    monkeypatch.setattr(callbacks.saving.checkpoint, "DeviceMemory", Full)
    monkeypatch.setattr(callbacks.saving.checkpoint.Writer, "submit", submit_fetched)
    fetch = callbacks.saving.checkpoint_maker.state.Snapshot.fetch

    def fetch_and_note(snapshot, memory):
        if list(snapshot.tensors()):
            fetched.append("values")
        fetch(snapshot, memory)

    monkeypatch.setattr(callbacks.saving.checkpoint_maker.state.Snapshot, "fetch", fetch_and_note)
    np.random.seed(0)
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(0)
    with pytest.warns(UserWarning) as warned:
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "full" / "b{batch}.weights.h5"), save_freq=4))
    told = [str(each.message) for each in warned if "Training waited" in str(each.message)]
    assert len(told) == 1 and re.search(r"waited \d+\.\d\d s while .* MB were copied from /gpu:0, which has no room", told[0])
    assert fetched[::2] == ["values"] * 3  # before the thread is asked to write, each time
    monkeypatch.undo()
    for batch in (4, 8, 10):
        assert_same_weights(tmp_path / "full" / f"b{batch}.weights.h5", tmp_path / "room" / f"b{batch}.weights.h5")
