"""Weights are written and read as Keras does it, whatever layers keep."""

import os

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from callbacks.weights_file import load_weights, save_weights

KEPT = {
    "matrix": np.arange(6, dtype="float32").reshape(2, 3),
    "half": np.array([1.5, -2], "float16"),
    "double": np.array([0.1], "float64"),
    "counts": np.array([1, 2**62], "int64"),
    "seeds": np.array([2**32 - 1, 7], "uint32"),
    "flags": np.array([True, False]),
    "complex": np.array([1 + 2j], "complex64"),
    "big_endian": np.array([1, 2], ">f4"),
    "number": np.float32(3.5),
    "nothing": np.zeros([0, 3], "float32"),
    "bits": keras.ops.convert_to_numpy(keras.ops.cast([0.5, 3.0], "bfloat16")),
}


@keras.saving.register_keras_serializable("test_weights_file")
class Keeper(keras.layers.Layer):
    """Keeps more than variables, and notes what it gets back."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=[2, 3], name="kernel")
        self.twin = self.add_weight(shape=[2, 3], name="twin")

    def call(self, x):
        return x @ self.kernel + x @ self.twin

    def save_own_variables(self, store):
        for name, value in KEPT.items():
            store[name] = value

    def load_own_variables(self, store):
        self.found = {name: store[name] for name in store.keys()}  # noqa: SIM118, a store is no dict
        matrix = self.found["matrix"]
        self.kernel.assign(matrix)
        self.twin.assign(matrix)


def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input([2]), Keeper(), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.1), "mse")
    return made


@pytest.fixture(params=[".weights.h5", ".keras"])
def path(request, tmp_path):
    path = str(tmp_path / f"kept{request.param}")
    saved = model()
    if request.param == ".keras":
        saved.save(path)
    else:
        saved.save_weights(path)
    return path


def test_every_kind_of_value_is_written_as_by_keras(tmp_path):
    written = model()
    written.fit(np.ones([4, 2]), np.ones([4, 1]), verbose=0)  # so that the optimizer has something to keep
    written.save_weights(tmp_path / "keras.weights.h5")
    save_weights(written, str(tmp_path / "ours.weights.h5"))
    expected, found = content(tmp_path / "keras.weights.h5"), content(tmp_path / "ours.weights.h5")
    assert found == expected and len(expected) > 2 * len(KEPT)


def content(path):
    """Name -> attributes; and of what is no folder dtype, shape and bytes."""
    names = {}

    def note(name, node):
        names[name] = [dict(node.attrs)]
        if isinstance(node, h5py.Dataset):
            names[name] += [node.dtype, node.shape, node[()].tobytes()]

    with h5py.File(path) as file:
        file.visititems(note)
    return names


def test_every_kind_of_value_comes_back_as_with_keras(path):
    by_keras, ours = model(), model()
    by_keras.load_weights(path)
    load_weights(ours, path)
    expected, found = by_keras.layers[0].found, ours.layers[0].found
    assert found.keys() == expected.keys() == KEPT.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(np.asarray(found[name]), value, err_msg=name)


def test_two_variables_that_got_one_array_are_two(path):
    restored = model()
    load_weights(restored, path)
    kernel, twin = restored.layers[0].kernel, restored.layers[0].twin
    kernel._value.assign_add(tf.ones([2, 3]))
    np.testing.assert_array_equal(kernel, KEPT["matrix"] + 1)
    np.testing.assert_array_equal(twin, KEPT["matrix"])


def test_an_array_that_has_become_a_variable_cannot_be_written_to(path):
    restored = model()
    load_weights(restored, path)
    found = restored.layers[0].found
    found["half"][0] = 7
    with pytest.raises(ValueError, match="read-only"):
        found["matrix"][0] = 7
    np.testing.assert_array_equal(restored.layers[0].kernel, KEPT["matrix"])


def test_parts_and_results_of_an_array_become_the_tensors_that_they_are(path):
    restored = model()
    load_weights(restored, path)
    found = restored.layers[0].found["matrix"]
    assert tf.convert_to_tensor(found[1]).numpy().tolist() == [3, 4, 5]
    assert tf.convert_to_tensor(found * 2).numpy().tolist() == [[0, 2, 4], [6, 8, 10]]
    assert tf.convert_to_tensor(found, "float64").dtype == "float64"


def test_a_file_of_another_model_is_refused(path):
    other = keras.Sequential([keras.Input([2]), keras.layers.Dense(7)])
    with pytest.raises(ValueError, match="could not be loaded"):
        load_weights(other, path)


def test_a_file_is_read_once_and_no_part_of_it_again(tmp_path):
    layers = [keras.layers.Dense(256) for _ in range(8)]
    wide = keras.Sequential([keras.Input([256]), *layers])
    wide.compile("adam", "mse")
    wide.fit(np.ones([4, 256]), np.ones([4, 256]), verbose=0)
    for path in (str(tmp_path / "wide.weights.h5"), str(tmp_path / "wide.keras")):
        (wide.save if path.endswith(".keras") else wide.save_weights)(path)
        before = bytes_read()
        load_weights(wide, path)
        assert bytes_read() - before < 1.1 * os.path.getsize(path)


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
