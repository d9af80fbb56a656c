"""Values of a weights file are read once, like Keras reads them, and become separate variables."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from stored_values import KEPT, SUFFIXES, assert_same_values, kept, train

from callbacks import GlobalStepCheckpoint, restore
from callbacks.disk import hdf5_reader
from callbacks.disk.hdf5_reader import load_weights


def model_of_keeper():
    keras.utils.set_random_seed(0)
    made = kept()
    made.compile(keras.optimizers.SGD(0.1), "mse")
    return made


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    """A file of stock Keras."""
    path = str(tmp_path / f"kept{request.param}")
    saved = model_of_keeper()
    saved.fit(np.ones([4, 2]), np.ones([4, 1]), verbose=0)  # the optimizer has something to keep
    (saved.save if request.param == ".keras" else saved.save_weights)(path)
    return path


def test_every_kind_of_value_is_restored_as_by_keras(path):
    by_keras, ours = model_of_keeper(), model_of_keeper()
    by_keras.load_weights(path)
    load_weights(ours, path)
    assert_same_values(ours.layers[0].found, by_keras.layers[0].found, KEPT)


def test_two_variables_from_one_array_stay_separate(path):
    restored = model_of_keeper()
    load_weights(restored, path)
    kernel, twin = restored.layers[0].kernel, restored.layers[0].twin
    kernel._value.assign_add(tf.ones([2, 3]))
    np.testing.assert_array_equal(kernel, KEPT["matrix"] + 1)
    np.testing.assert_array_equal(twin, KEPT["matrix"])


def test_an_array_that_has_become_a_variable_cannot_be_written_to(path):
    restored = model_of_keeper()
    load_weights(restored, path)
    found = restored.layers[0].found
    found["half"][0] = 7
    with pytest.raises(ValueError, match="read-only"):
        found["matrix"][0] = 7
    np.testing.assert_array_equal(restored.layers[0].kernel, KEPT["matrix"])


def test_slices_and_results_of_an_array_become_correct_tensors(path):
    restored = model_of_keeper()
    load_weights(restored, path)
    found = restored.layers[0].found["matrix"]
    assert tf.convert_to_tensor(found[1]).numpy().tolist() == [3, 4, 5]
    assert tf.convert_to_tensor(found * 2).numpy().tolist() == [[0, 2, 4], [6, 8, 10]]
    assert tf.convert_to_tensor(found, "float64").dtype == "float64"


def test_a_file_of_another_model_is_refused(path):
    other = keras.Sequential([keras.Input([2]), keras.layers.Dense(7)])
    with pytest.raises(ValueError, match="could not be loaded"):
        load_weights(other, path)


def test_a_file_is_read_only_once(tmp_path):
    layers = [keras.layers.Dense(256) for _ in range(8)]
    deep = keras.Sequential([keras.Input([2]), *layers, keras.layers.Dense(1)])
    train(deep, tmp_path)
    for name in ("ours", "keras"):
        for suffix in SUFFIXES:
            path = str(tmp_path / f"{name}_4{suffix}")
            before = bytes_read()
            load_weights(deep, path)
            assert bytes_read() - before < 1.1 * os.path.getsize(path), path


class Counted(keras.layers.Dense):
    """Counts how often it is loaded."""

    loads = 0

    def load_own_variables(self, store):
        self.loads += 1
        super().load_own_variables(store)


def test_an_object_with_a_method_of_its_own_is_loaded_once(tmp_path):
    model = keras.Sequential([keras.Input([2]), Counted(3), keras.Sequential([Counted(2)])])
    model.save_weights(tmp_path / "m.weights.h5")
    load_weights(model, str(tmp_path / "m.weights.h5"))
    assert [layer.loads for layer in (model.layers[0], model.layers[1].layers[0])] == [1, 1]


class StoresInGroups(keras.layers.Dense):
    """Stores its variables under names with slashes, like `store[variable.path] = variable`."""

    def save_own_variables(self, store):
        for variable in self.weights:
            store[f"of/dense/{variable.name}"] = variable

    def load_own_variables(self, store):
        for variable in self.weights:
            variable.assign(store[f"of/dense/{variable.name}"])


@pytest.mark.parametrize("units", [64, 128])  # small values, and large ones, which do not go through HDF5
def test_values_with_slashes_in_their_names_are_saved_and_read_as_by_keras(tmp_path, units):
    saved, ours, by_keras = (deep(units, StoresInGroups) for _ in range(3))
    saved.compile("sgd", "mse")
    saved.fit(np.ones([4, units]), np.ones([4, units]), verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "m.weights.h5")])
    assert restore(ours, tmp_path).batch == 1
    by_keras.load_weights(tmp_path / "m.weights.h5")
    for model in (ours, by_keras):
        for variable, expected in zip(model.weights, saved.weights, strict=True):
            np.testing.assert_array_equal(variable, expected)


class Twice(keras.Model):
    """Has one layer under two names."""

    def __init__(self):
        super().__init__()
        self.a = self.b = keras.layers.Dense(2)
        self.c = keras.layers.Dense(3)
        self.build([None, 2])

    def build(self, shape):
        self.a.build(shape)
        self.c.build(shape)

    def call(self, x):
        return self.c(self.a(x))


def test_an_object_is_also_found_under_another_of_its_names_as_by_keras(tmp_path):
    """Another version of Keras may visit attributes in another order."""
    path, saved = str(tmp_path / "m.weights.h5"), Twice()
    saved.save_weights(path)
    with h5py.File(path, "a") as file:
        file.move("a", "b")
    by_keras, ours = Twice(), Twice()
    by_keras.load_weights(path)
    load_weights(ours, path)
    for model in (by_keras, ours):
        for variable, expected in zip(model.weights, saved.weights, strict=True):
            np.testing.assert_array_equal(variable, expected)


SMALL, LARGE = 64, 128  # units of a layer whose kernel is read at once, and in a thread


def deep(units, layer=keras.layers.Dense):
    return keras.Sequential([keras.Input([units]), *(layer(units) for _ in range(4))])


@pytest.mark.parametrize("units", [SMALL, LARGE])
@pytest.mark.parametrize("cut", range(4))
def test_a_file_that_is_shorter_than_its_values_changes_no_variable(tmp_path, monkeypatch, cut, units):
    """Another program truncates it while it is read, and one value lacks its last bytes."""
    path, preadv, seen = str(tmp_path / "m.weights.h5"), os.preadv, []
    model = deep(units)
    deep(units).save_weights(path)
    before = [v.numpy() for v in model.weights]

    def truncated(descriptor, buffers, offset):
        size = len(buffers[0])
        if size == units * units * 4:
            seen.append(offset)
            if len(seen) == 1 + cut:
                return preadv(descriptor, [buffers[0][: size - 4]], offset)
        return 0 if size == 4 else preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", truncated)
    with pytest.raises(OSError, match="ends early"):
        load_weights(model, path)
    for variable, expected in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_every_value_is_read_before_the_first_one_is_assigned(tmp_path, monkeypatch):
    """No read in a thread ends before the threads are waited for, or a value is assigned."""
    path, preadv, may_end, ended, seen = str(tmp_path / "m.weights.h5"), os.preadv, threading.Event(), [], []

    class Watched(keras.layers.Dense):
        def load_own_variables(self, store):
            seen.append(len(ended))
            may_end.set()
            super().load_own_variables(store)

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            if wait:
                may_end.set()
            super().shutdown(wait, **options)

    def held_back(descriptor, buffers, offset):
        is_kernel = len(buffers[0]) == LARGE * LARGE * 4
        assert not is_kernel or may_end.wait(60)
        size = preadv(descriptor, buffers, offset)
        ended.extend([offset] * is_kernel)
        return size

    saved, model = deep(LARGE, Watched), deep(LARGE, Watched)
    saved.save_weights(path)
    monkeypatch.setattr(os, "preadv", held_back)
    monkeypatch.setattr(hdf5_reader, "ThreadPoolExecutor", Threads)
    load_weights(model, path)
    assert seen == [4, 4, 4, 4]
    for variable, expected in zip(model.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(variable, expected)


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
