"""A checkpoint contains what Keras saves at the same instant, and is read like Keras reads it, whatever layers store."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from stored_values import BATCH, MODELS, SUFFIXES, Keeper, assert_same_values, data_for, of_words, train, wide

from callbacks import GlobalStepCheckpoint
from callbacks.disk.hdf5_reader import load_weights


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
