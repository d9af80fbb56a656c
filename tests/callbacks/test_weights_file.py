"""A checkpoint contains what Keras saves at the same instant, and is read like Keras reads it, whatever layers store."""

import io
import json
import os
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from callbacks import GlobalStepCheckpoint
from callbacks.hdf5_reader import load_weights

SUFFIXES = (".weights.h5", ".keras")
BATCH, BATCHES = 4, 4
LARGE = (1 << 16) + 24  # bytes; from 64 KiB on a value does not go through HDF5
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
    "bits": np.array([0.5, 3.0], ml_dtypes.bfloat16),
}
DTYPES = ("float32", "float16", "float64", "int8", "int64", "uint32", "bool", "complex64", ">f4", ml_dtypes.bfloat16)
KEPT_LARGE = {
    np.dtype(dtype).str.strip("<>|") + f"_{i}": np.random.default_rng(i).integers(0, 100, LARGE).astype(dtype)
    for i, dtype in enumerate(DTYPES)
} | {"transposed": np.arange(40_000, dtype="float32").reshape(200, 200).T}


@keras.saving.register_keras_serializable("test_weights_file")
class Keeper(keras.layers.Layer):
    """Stores more than variables, and records what it gets back."""

    KEPT = KEPT

    def build(self, shape):
        self.kernel = self.add_weight(shape=[2, 3], name="kernel")
        self.twin = self.add_weight(shape=[2, 3], name="twin")

    def call(self, x):
        return x @ self.kernel + x @ self.twin

    def save_own_variables(self, store):
        for name, value in self.KEPT.items():
            store[name] = value

    def load_own_variables(self, store):
        self.found = {name: store[name] for name in store.keys()}  # noqa: SIM118, a store is not a dict
        matrix = KEPT["matrix"] if "matrix" not in self.found else self.found["matrix"]
        self.kernel.assign(matrix)
        self.twin.assign(matrix)


@keras.saving.register_keras_serializable("test_weights_file")
class LargeKeeper(Keeper):
    """The same with large arrays."""

    KEPT = KEPT_LARGE


@keras.saving.register_keras_serializable("test_weights_file")
class Variables(keras.layers.Layer):
    """Has a small and a large variable of each common dtype."""

    DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int32", "uint8", "int64", "bool")

    def build(self, shape):
        for dtype in self.DTYPES:
            for size in (3, LARGE):
                variable = self.add_weight(
                    shape=[size], dtype=dtype, initializer="zeros", name=f"{dtype}_{size}", trainable=False, autocast=False
                )
                variable.assign(np.random.default_rng(size).integers(0, 2 if dtype == "bool" else 100, size).astype(variable.dtype))

    def call(self, x):
        return x


@keras.saving.register_keras_serializable("test_weights_file")
class Nested(keras.layers.Layer):
    """Keeps layers in nested containers; some layers have the same name, and one occurs twice."""

    def __init__(self, **options):
        super().__init__(**options)
        dense = keras.layers.Dense
        self.listed = [dense(2, name="same"), dense(2, name="same"), keras.layers.BatchNormalization()]
        self.mapped = {"a": dense(2), "b": self.listed[0]}
        self.tuple = (dense(2), keras.Sequential([dense(2), keras.layers.Dropout(0.5)]))
        self.nested = [[dense(2)], {"c": [dense(2)]}]

    def innermost(self):  # not a property, because Keras finds layers through properties
        return (*self.nested[0], *self.nested[1]["c"])

    def build(self, shape):
        for layer in (*self.listed, *self.mapped.values(), *self.tuple, *self.innermost()):
            if not layer.built:
                layer.build((None, 2))

    def call(self, x, training=None):
        for layer in (self.listed[0], self.listed[1], self.mapped["a"], *self.tuple, *self.innermost()):
            x = layer(x)
        return self.listed[2](x, training=training)


def kept(layer=Keeper):
    return keras.Sequential([keras.Input([2]), layer(), keras.layers.Dense(1)])


def of_all_dtypes():
    return keras.Sequential([keras.Input([2]), Variables(), keras.layers.Dense(1)])


def wide():
    """Returns a model with large kernels and moments, and small biases."""
    return keras.Sequential(
        [keras.Input([2]), keras.layers.Dense(150), keras.layers.Dense(150, dtype="mixed_bfloat16"), keras.layers.Dense(1)]
    )


def wide_of_bfloat16():
    return keras.Sequential(
        [
            keras.Input([2]),
            keras.layers.Dense(250, dtype="bfloat16"),
            keras.layers.Dense(250, dtype="bfloat16"),
            keras.layers.Dense(1),
        ]
    )


def nested():
    return keras.Sequential([keras.Input([2]), Nested(), keras.layers.Dense(1)])


def of_words():
    """Returns a model whose learned vocabularies are assets of the archive."""
    layers = keras.layers
    vectorize, lookup = layers.TextVectorization(output_sequence_length=4), layers.StringLookup()
    vectorize.adapt(["a quick brown fox", "a slow é dog"])
    lookup.adapt(["red", "green\tblue", "red"])
    words, color = keras.Input([1], dtype="string"), keras.Input([1], dtype="string")
    pool = layers.GlobalAveragePooling1D()
    x = pool(layers.Embedding(20, 5)(vectorize(words))) + pool(layers.Embedding(9, 5)(lookup(color)))
    return keras.Model([words, color], layers.Dense(1)(x))


def with_a_shared_layer():
    """A layer that is used twice is stored once."""
    shared = keras.layers.Dense(2)
    inputs = keras.Input([2])
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.BatchNormalization()(shared(shared(inputs)))))


MODELS = {
    "small values": kept,
    "large values": lambda: kept(LargeKeeper),
    "variables of all dtypes": of_all_dtypes,
    "large weights": wide,
    "large weights of bfloat16": wide_of_bfloat16,
    "layers in containers": nested,
    "vocabularies": of_words,
    "a shared layer": with_a_shared_layer,
}


def data_for(model):
    random = np.random.default_rng(0)
    y = random.normal(size=[BATCH * BATCHES, 1]).astype("float32")
    if len(model.inputs) == 1:
        return random.normal(size=[BATCH * BATCHES, 2]).astype("float32"), y
    words = np.array([["a brown dog"], ["é fox"], ["unseen"], ["quick quick"]] * BATCHES)
    return [tf.constant(words), tf.constant(np.array([["red"], ["blue"], ["green\tblue"], [""]] * BATCHES))], y


class SaveAsKeras(keras.callbacks.Callback):
    """Saves the same instant with stock Keras, beside each checkpoint."""

    def __init__(self, directory, every):
        super().__init__()
        self.directory, self.every, self.batches = directory, every, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches % self.every == 0:
            self.model.save_weights(self.directory / f"keras_{self.batches}.weights.h5")
            self.model.save(self.directory / f"keras_{self.batches}.keras")


def train(model, directory, background=True, optimizer="adam"):
    """Saves batches 2 and 4 with our callback, in both formats, and with Keras."""
    model.compile(optimizer, "mse", run_eagerly=True)
    x, y = data_for(model)
    ours = [
        GlobalStepCheckpoint(str(directory / f"ours_{{batch}}{suffix}"), save_freq=2, background=background) for suffix in SUFFIXES
    ]
    model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[*ours, SaveAsKeras(directory, 2)])


def tree(path):
    """Returns name -> attributes, and for a dataset also type, shape and bytes; leaves out our own group."""
    source = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(source, "r") as file:
        names = {"/": [dict(file.attrs)]}

        def note(name, node):
            if name.partition("/")[0] != "global_step":
                names[name] = [dict(node.attrs)]
                if isinstance(node, h5py.Dataset):
                    names[name] += [node.dtype, node.shape, node[()].tobytes()]

        file.visititems(note)
    return names


def assert_same_tree(path, expected):
    found, expected = tree(path), tree(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name
    return found


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """The name of a model, and a directory with checkpoints of it and what stock Keras saved at the same instants."""
    directory = tmp_path_factory.mktemp("saved")
    train(MODELS[request.param](), directory)
    return request.param, directory


def test_a_checkpoint_contains_what_keras_saves_at_the_same_instant(saved):
    assert_holds_what_keras_saves(*saved)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if "values" in name else pytest.mark.slow) for name in MODELS])
def test_a_checkpoint_without_background_contains_it_too(name, tmp_path):
    train(MODELS[name](), tmp_path, background=False)
    assert_holds_what_keras_saves(name, tmp_path)


def assert_holds_what_keras_saves(name, tmp_path):
    """Compares every group, attribute and dataset, with its type, shape and bytes; of archives every other member too."""
    for batch in (2, 4):
        held = assert_same_tree(tmp_path / f"ours_{batch}.weights.h5", tmp_path / f"keras_{batch}.weights.h5")
        assert_same_tree(tmp_path / f"ours_{batch}.keras", tmp_path / f"keras_{batch}.keras")
        with (
            zipfile.ZipFile(tmp_path / f"ours_{batch}.keras") as ours,
            zipfile.ZipFile(tmp_path / f"keras_{batch}.keras") as keras_,
        ):
            assert ours.testzip() is None
            assert sorted(ours.namelist()) == sorted(name for name in keras_.namelist() if not name.endswith("/"))
            for member in set(ours.namelist()) - {"model.weights.h5", "metadata.json"}:
                assert ours.read(member) == keras_.read(member), member
            metadata = [json.loads(archive.read("metadata.json")) for archive in (ours, keras_)]
            assert metadata[0].keys() == metadata[1].keys() >= {"keras_version", "date_saved"}
            assert metadata[0]["keras_version"] == metadata[1]["keras_version"]
            assets = [member for member in ours.namelist() if member.startswith("assets/")]
        assert len(assets) == (3 if name == "vocabularies" else 0)
        sizes = [len(each[3]) for each in held.values() if len(each) > 1]
        assert any(size >= 1 << 16 for size in sizes) == ("large" in name or "dtypes" in name)
    trained = [tree(tmp_path / f"ours_{batch}.weights.h5") for batch in (2, 4)]
    assert trained[0] != trained[1]


def test_a_checkpoint_is_read_as_keras_reads_it(saved):
    """Reads into a model with other values: small values through HDF5, large ones directly."""
    name, directory = saved
    for suffix in SUFFIXES:
        path = str(directory / f"ours_4{suffix}")
        by_keras, ours = MODELS[name](), MODELS[name]()
        for each in (by_keras, ours):
            each.compile("adam", "mse")
            each.optimizer.build(each.trainable_variables)
            for variable in each.variables:
                if variable.dtype != "bool" and "seed" not in variable.path:
                    variable.assign(variable + 1)
        by_keras.load_weights(path)
        load_weights(ours, path)
        pairs = list(
            zip((*by_keras.weights, *by_keras.optimizer.variables), (*ours.weights, *ours.optimizer.variables), strict=True)
        )
        for expected, found in pairs:
            expected, found = keras.ops.convert_to_numpy(expected), keras.ops.convert_to_numpy(found)
            assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())
        for expected, found in zip(by_keras.layers, ours.layers, strict=True):
            if isinstance(expected, Keeper):
                assert_same_values(found.found, expected.found, expected.KEPT)


def test_stock_keras_loads_the_model_from_an_archive_with_vocabularies(tmp_path):
    model = of_words()
    train(model, tmp_path)
    loaded = keras.models.load_model(tmp_path / "ours_4.keras")
    x, _ = data_for(model)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_at_the_end_of_an_epoch_weights_are_those_of_the_callbacks_place_in_the_list(tmp_path):
    """As with ModelCheckpoint; the state for a resume includes changes of later callbacks."""

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.save_weights(tmp_path / "keras.weights.h5")

    class Change(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[-1].kernel.assign_add(np.ones(self.model.layers[-1].kernel.shape))

    model = wide()
    model.compile("adam", "mse")
    ours = GlobalStepCheckpoint(str(tmp_path / "ours.weights.h5"))
    model.fit(*data_for(model), batch_size=BATCH, verbose=0, callbacks=[Save(), ours, Change()])
    assert_same_tree(tmp_path / "ours.weights.h5", tmp_path / "keras.weights.h5")


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


def assert_same_values(found, expected, names):
    assert found.keys() == expected.keys() == names.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)


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


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
