"""Checkpoints of format 1 can still be read: `tests/data/format_1` contains files from the code of that time."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from format_1_run import BATCH, BATCHES, STOPS_AFTER, train
from format_1_run import build as build_model
from small import names

from callbacks import GlobalStepCheckpoint, counters_of, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.disk import files, stored_header
from callbacks.state import state

pytestmark = pytest.mark.versions

STORED = Path(__file__).parent / "data" / "format_1"
MIDDLE, ARCHIVE, EPOCH_END = STORED / "b10.weights.h5", STORED / "b10.keras", STORED / "b12.weights.h5"
TWO_REPLICAS = STORED / "two_replicas_10.weights.h5"


def build():
    """Returns the model of that run; it runs eagerly, because tracing would take most of the time of these tests."""
    model = build_model()
    model.run_eagerly = True
    return model


def counted(checkpoint):
    return checkpoint.batch, checkpoint.step, checkpoint.epoch, checkpoint.samples


def raw(path):
    """Returns every dataset of the group `global_step`, read only with h5py."""
    found = {}

    def note(name, node):
        if isinstance(node, h5py.Dataset):
            found[name] = node[()]

    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive, archive.open("global_step.h5") as member, h5py.File(member) as file:
            file["global_step"].visititems(note)
    else:
        with h5py.File(path) as file:
            file["global_step"].visititems(note)
    return found


def test_files_of_format_1_are_listed_and_verified(capsys):
    assert main(["list", str(STORED)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted((row[:4], Path(row[-1]).name) for row in rows) == [
        (["10", "10", "3", "40"], "b10.keras"),
        (["10", "10", "3", "40"], "b10.weights.h5"),
        (["10", "10", "3", "40"], "two_replicas_10.weights.h5"),
        (["12", "12", "3", "48"], "b12.weights.h5"),
    ]
    assert main(["verify", str(STORED)]) == 0
    assert "4 files" in capsys.readouterr().out


def test_the_newest_is_found_with_its_counters_and_metrics():
    newest = latest_checkpoint(STORED / "b{batch}.weights.h5")
    assert (newest.path, counted(newest)) == (str(EPOCH_END), (12, 12, 3, 48))
    archive = latest_checkpoint(STORED / "b{batch}.keras")
    assert (archive.path, counted(archive)) == (str(ARCHIVE), (10, 10, 3, 40))
    for found, path in ((newest, EPOCH_END), (archive, ARCHIVE)):
        header = json.loads(raw(path)["header"].tobytes())
        assert found.metrics == header["metrics"] and found.metrics.keys() >= {"loss", "mae"}


@pytest.mark.parametrize("path", [MIDDLE, ARCHIVE, EPOCH_END], ids=lambda path: path.name)
def test_weights_and_optimizer_are_restored_as_stock_keras_loads_them(path):
    by_keras, ours = build(), build()
    by_keras.optimizer.build(by_keras.trainable_variables)
    by_keras.load_weights(path)
    restored = restore(ours, path)
    assert counted(restored) == counted(counters_of(ours).read())
    pairs = zip((*by_keras.weights, *by_keras.optimizer.variables), (*ours.weights, *ours.optimizer.variables), strict=True)
    for expected, found in pairs:
        np.testing.assert_array_equal(found, expected, err_msg=found.path)
    assert float(ours.optimizer.learning_rate) == np.float32(0.05) * np.float32(0.5) ** (2 if path is EPOCH_END else 1)


@pytest.mark.parametrize("path", [MIDDLE, ARCHIVE, EPOCH_END], ids=lambda path: path.name)
def test_seeds_and_metrics_are_those_in_the_file(path):
    datasets = raw(path)
    model = build()
    train(model, keras.callbacks.Callback(), epochs=1, steps_per_epoch=1)  # metrics have variables from the first batch on
    state.restore(model, str(path))
    state.read_state(str(path)).assign_metrics(model)
    dropout = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))
    np.testing.assert_array_equal(dropout.seed_generator.state, datasets["unsaved/0"][0])
    assert len(model.metrics_variables) == sum(name.startswith("metrics/") for name in datasets) == 4
    for i, variable in enumerate(model.metrics_variables):
        np.testing.assert_array_equal(variable, datasets[f"metrics/{i}"][0], err_msg=variable.path)
    assert datasets["metrics/1"] == (BATCHES if path is EPOCH_END else 2) * BATCH  # samples that the mean loss is over


def test_each_replica_gets_its_own_values(strategy):
    datasets = raw(TWO_REPLICAS)
    where = strategy(2)
    with where.scope():
        model = build()
    restore(model, TWO_REPLICAS)
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    dropout = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))
    for variable, name in (
        (norm.moving_mean, "replicated/0"),
        (norm.moving_variance, "replicated/1"),
        (dropout.seed_generator.state, "unsaved/0"),
    ):
        parts = where.experimental_local_results(variable.value)
        np.testing.assert_array_equal(np.stack([part.numpy() for part in parts]), datasets[name])
    assert not np.array_equal(*datasets["replicated/0"])


@pytest.fixture(scope="module")
def uninterrupted():
    """Runs the same training without checkpoints. Returns its model and its history."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = build()
    return model, train(model, keras.callbacks.Callback(), epochs=8).history


@pytest.mark.parametrize("path", [MIDDLE, ARCHIVE, EPOCH_END], ids=lambda path: path.name)
def test_a_run_resumes_from_format_1_ends_like_the_uninterrupted_one_and_writes_format_2(uninterrupted, path, tmp_path):
    """The end depends on seeds, running metrics, and the state of EarlyStopping and ReduceLROnPlateau."""
    expected, history = uninterrupted
    assert len(history["loss"]) == STOPS_AFTER
    shutil.copy(path, tmp_path)
    suffix = path.name.removeprefix(path.name.split(".")[0])
    keras.utils.set_random_seed(7)
    model = build()
    checkpoint = GlobalStepCheckpoint(str(tmp_path / f"b{{batch}}{suffix}"), save_freq=7, resume=True)
    found = train(model, checkpoint, epochs=8).history
    assert checkpoint.resumed_from.path == str(tmp_path / path.name)
    assert counters_of(model).read().batch == STOPS_AFTER * BATCHES
    # the files may come from another kind of processor, so the last bits may differ
    for name in ("loss", "mae", "learning_rate"):
        np.testing.assert_allclose(found[name], history[name], rtol=1e-4, err_msg=name)
    for one, other in zip(expected.weights, model.weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5, err_msg=one.path)
    written = [tmp_path / f"b{batch}{suffix}" for batch in (14, 20)]
    assert names(tmp_path) == sorted([path.name, *(each.name for each in written)])
    for each in written:
        assert each.read_bytes()[-64:].startswith(b"GSTEP\x00\x00\x02")
        assert stored_header.read_header(str(each))["format"] == 2
    assert latest_checkpoint(tmp_path).batch == 20


@pytest.mark.parametrize("path", [MIDDLE, ARCHIVE], ids=lambda path: path.name)
def test_a_flipped_byte_anywhere_is_detected(path, tmp_path):
    content = path.read_bytes()
    copy = tmp_path / path.name
    copy.write_bytes(content)
    with open(copy, "r+b", buffering=0) as file:
        for place in (*range(0, len(content), 101), *range(len(content) - 100, len(content))):
            file.seek(place)
            file.write(bytes([content[place] ^ 1 << place % 8]))
            with pytest.raises(files.Corrupt):
                files.verify(str(copy))
            file.seek(place)
            file.write(content[place : place + 1])
    files.verify(str(copy))


@pytest.mark.parametrize(
    "rules, stay",
    [
        ({"keep_last": 2}, [18, 20]),
        ({"keep_last": 4}, [14, 16, 18, 20]),
        ({"keep_every": 10}, [10, 20]),
        ({"keep_last": 1, "keep_every": 12}, [12, 20]),
    ],
)
def test_retention_counts_files_of_both_formats(tmp_path, rules, stay):
    for path in (MIDDLE, EPOCH_END):
        shutil.copy(path, tmp_path)
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=2, resume=True, **rules)
    train(build(), checkpoint, epochs=8)
    assert checkpoint.resumed_from.batch == 12
    assert names(tmp_path) == [f"b{batch}.weights.h5" for batch in stay]
