"""Malicious headers, in files that verify: each is quickly named in one line."""

import contextlib

import h5py
import keras
import numpy as np
import pytest
from hostile import assert_refused, hdf5_of, put_hdf5, with_header
from small import Do, fit, names, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.disk import checksum, files
from callbacks.plain_data import dtype_named


def text(content):
    return lambda header: content


def without(key):
    return lambda header: header.pop(key) and None


def put_in(value, *keys):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


NAN, LARGE = float("nan"), 10**4000
HEADERS = {
    "no JSON": text(b"no JSON"),
    "no UTF-8": text(b'{"format": "\xff\xfe"}'),
    "deep": text(b"[" * 1_000_000),
    "deep dicts": text(b'{"a":' * 100_000),
    "a number of a million digits": text(b"1" * 1_000_000),
    "a list": text(b"[1, 2]"),
    "empty": text(b"{}"),
    "the format is NaN": put_in(NAN, "format"),
    "the format is a bool": put_in(True, "format"),
    "the format is a list": put_in([2], "format"),
    "a format 1 that is none": put_in(1, "format"),
    **{f"without {key}": without(key) for key in ("format", "template", "counts", "logs", "metrics", "callbacks", "variables")},
    **{f"without {key}": without(key) for key in ("stopped", "metrics_variables", "optimizers", "beside")},
    "NaN batches": put_in(NAN, "counts", "batch"),
    "negative": put_in(-1, "counts", "replicas"),
    "large": put_in(LARGE, "counts", "samples_in_epoch"),
    "a text for a number": put_in("10", "counts", "batch"),
    "counts that nobody knows": put_in(1, "counts", "more"),
    **{
        f"without {key}": lambda header, key=key: header["counts"].pop(key) and None
        for key in ("batch", "epoch", "samples", "step")
    },
    "a place that is a list": put_in([], "data"),
    "a place that nobody knows": put_in({"more": 1}, "data"),
    **{f"a place with {key}": put_in({key: "x"}, "data") for key in ("created", "used", "drawn", "samples", "length", "epochs")},
    "a place with seeds": put_in({"seeds": 5}, "data"),
    "a place with a negative number": put_in({"created": -1}, "data"),
    "a place with random": put_in({"random": [4, [5] * 625, None]}, "data"),
    "a place with random words": put_in({"random": [3, [1 << 40] * 624 + [0], None]}, "data"),
    "a place that drew more batches than were trained on": put_in({"drawn": 11}, "data"),
    "an epoch with more batches than the run": put_in(11, "counts", "batches_in_epoch"),
    "epoch 0": put_in(0, "counts", "epoch"),
    "no replicas": put_in(0, "counts", "replicas"),
    "samples that no run trains on": put_in(1 << 54, "counts", "samples"),
    "a hook that nobody calls": put_in("on_batch", "hook"),
    "deep metrics": put_in({"loss": nested(400)}, "metrics"),
    "a state that is nested too deeply": put_in({"Journal-1": nested(400)}, "callbacks"),
    "a metric that is no float": put_in({"loss": LARGE}, "metrics"),
    "a log that is no float": put_in({"loss": [1, -LARGE]}, "logs"),
    "an array under two names": lambda header: header.update(beside=[next(iter(header["variables"]))] * 2),
    "a template that is none": put_in("b{batch", "template"),
    "a template that is a list": put_in(["b{batch}.keras"], "template"),
    "a template that makes long names": put_in("b{batch:0999999999d}.keras", "template"),
    "metrics that are a list": put_in([], "metrics"),
    "logs that are null": put_in(None, "logs"),
    "callbacks that are a text": put_in("", "callbacks"),
    "stopped by a number": put_in(1, "stopped"),
    "variables without a shape": put_in({"a": [None, "float32", "a"]}, "variables"),
    "variables of too few parts": put_in({"a": [[1]]}, "variables"),
    "an enormous variable": put_in({"a": [[LARGE], "float32", "a"]}, "variables"),
    "variables that nobody named": put_in(["nobody"], "beside"),
    "optimizers without parts": put_in({"a": {}}, "optimizers"),
    "optimizers that are null": put_in({"a": None}, "optimizers"),
}


@pytest.mark.parametrize("trained", [".weights.h5"], indirect=True)
@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_malformed_header_is_refused(copies, capsys, change):
    directory, older, newer = copies
    with_header(newer, change)
    assert_refused(directory, older, newer, capsys, "its state cannot be read: ")


@pytest.mark.parametrize("version", [0, 3, -1, 10**4000])
def test_an_unknown_version_is_one_line_that_names_the_file(copies, version):
    directory, _, newer = copies
    with_header(newer, put_in(version, "format"))
    for look in (latest_checkpoint, lambda path: restore(small_model(), path)):
        with pytest.raises(InputError, match="this version of the callbacks reads formats 1 and 2") as raised:
            look(directory)
        assert str(newer) in str(raised.value) and len(str(raised.value)) < 400 + len(str(newer))


@pytest.fixture
def later(copies):
    """A directory with a checkpoint, and a newer one whose trailer has a later version."""
    directory, _, newer = copies
    content = bytearray(newer.read_bytes()[: -checksum.SIZE])
    content[-files.TRAILER_SIZE + checksum.SIZE + len(files.MAGIC) - 1] = 3
    newer.write_bytes(content + checksum.Checksum(content).digest())
    return directory, newer


def test_a_resume_beside_a_file_of_a_later_version_is_refused_and_changes_no_file(later, capsys):
    """A resume from the older checkpoint would replace the file."""
    directory, newer = later
    before = {name: (directory / name).read_bytes() for name in names(directory)}
    checkpoint = GlobalStepCheckpoint(str(directory / ("b{batch}" + "".join(newer.suffixes))), save_freq=5, resume=True)
    for look in (latest_checkpoint, lambda path: restore(small_model(), path), lambda path: fit(small_model(), checkpoint)):
        with pytest.raises(InputError, match=f"^{newer} has format 3, but this version of the callbacks reads formats 1 and 2"):
            look(directory)
    assert main(["list", str(directory)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if f"  {newer}: has format 3" in line]
    assert {name: (directory / name).read_bytes() for name in names(directory)} == before


def test_retention_never_deletes_a_file_of_a_later_version(later):
    directory, newer = later
    kept = newer.rename(directory / f"b7{''.join(newer.suffixes)}")
    before = kept.read_bytes()
    template = str(directory / ("b{batch}" + "".join(newer.suffixes)))
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=5, keep_last=1))
    assert names(directory) == [f"b10{''.join(newer.suffixes)}", kept.name]
    assert kept.read_bytes() == before


def array_that_is_missing(header):
    header["callbacks"]["Journal-1"] = {"array": [7, "<f8", [2]]}


def type_that_is_code(header):
    header["callbacks"]["Journal-1"] = {"array": [0, "O", [2]]}


def array_of_a_negative_length(header):
    header["callbacks"]["EarlyStopping-1"]["best_weights"][0]["array"][2] = [-1]


def array_in_many_places(header):
    """Copies of it would need memory that the size of the file does not bound."""
    state = header["callbacks"]["EarlyStopping-1"]
    state["best_weights"] = [state["best_weights"][0]] * 2


def history_that_is_deep(header):
    header["callbacks"]["History-1"]["history"]["loss"] = nested(90)


@pytest.mark.parametrize("change", [array_of_a_negative_length, array_in_many_places, history_that_is_deep])
def test_malformed_arrays_of_a_state_are_refused_in_one_line(stopped, tmp_path, change):
    path = tmp_path / stopped.name
    path.write_bytes(stopped.read_bytes())
    with_header(path, change)
    with pytest.raises(InputError, match=f"^Cannot read the state in {path}: ") as raised:
        restore(small_model(), path)
    assert "\n" not in str(raised.value)


def test_weights_of_another_shape_are_refused_by_the_resume(stopped, tmp_path):
    """Keras would fail when training ends."""
    path = tmp_path / stopped.name
    path.write_bytes(stopped.read_bytes())

    def change(header):
        header["callbacks"]["EarlyStopping-1"]["best_weights"][0]["array"][2] = [1, 6]

    with_header(path, change)
    with pytest.raises(InputError, match=f"^EarlyStopping-1 cannot be restored from {path}: ") as raised:
        fit(small_model(), *stateful(tmp_path), epochs=2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change", [array_that_is_missing, type_that_is_code])
def test_malformed_states_of_callbacks_are_refused_in_one_line(copies, change):
    _, _, newer = copies
    with_header(newer, change)
    with pytest.raises(InputError, match=f"^Cannot read the state in {newer}: ") as raised:
        restore(small_model(), newer)
    assert "\n" not in str(raised.value)
    with contextlib.suppress(ValueError):
        assert dtype_named("O") is None


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The checkpoint of batch 15 of a run with callbacks that have state, which was ended after it."""
    directory = tmp_path_factory.mktemp("stopped")

    def stop():
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        fit(small_model(), *stateful(directory, save_freq=5, background=False), Do(16, stop), epochs=2)
    return directory / "b15.weights.h5"


def stateful(directory, **options):
    return [
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss"),
        GlobalStepTensorBoard(directory.parent / "events", write_graph=False),
        GlobalStepCheckpoint(str(directory / "b{batch}.weights.h5"), resume=True, **options),
    ]


ARRAYS = [
    np.float32(1),
    np.zeros((0, 2), "float32"),
    np.zeros((1, 9), "float32"),
    np.zeros(3),
    np.array([b"text"]),
    np.zeros(2, "?"),
]


@pytest.mark.parametrize("trained", [".weights.h5"], indirect=True)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype} {array.shape}")
@pytest.mark.parametrize(
    ("place", "why"),
    [("global_step/variables/0", "Cannot read the state in {}: "), ("layers/dense/vars/0", "{} is of another model: ")],
)
def test_an_array_of_another_shape_or_type_is_refused_in_one_line(copies, place, why, array):
    _, _, newer = copies
    content = hdf5_of(newer)
    with h5py.File(content, "r+") as file:
        del file[place]
        file[place] = array
    put_hdf5(newer, content.getvalue())
    with pytest.raises(InputError) as raised:
        restore(small_model(), newer)
    assert str(raised.value).startswith(why.format(newer)) and "\n" not in str(raised.value)


STATES = {
    "EarlyStopping-1": [
        {"wait": "x"},
        {"wait": LARGE},
        {"wait": None},
        {"best": []},
        {"best_weights": 5},
        {"stopped_epoch": {}},
        [],
    ],
    "ReduceLROnPlateau-1": [{"cooldown_counter": None}, {"best": "x"}],
    "GlobalStepTensorBoard-1": [{"kept_seconds": "x"}, {"kept_seconds": None}, {"kept_seconds": NAN}, {}, 7],
    "History-1": [{"epoch": 5}, {"epoch": ["x"]}, {"history": []}, {"history": {"loss": 5}}],
}


@pytest.mark.parametrize(("name", "state"), [(name, state) for name, states in STATES.items() for state in states], ids=str)
def test_a_state_of_another_type_is_refused_by_the_resume_in_one_line(stopped, tmp_path, name, state):
    """A callback that accepted it would fail in the middle of training."""
    path = tmp_path / stopped.name
    path.write_bytes(stopped.read_bytes())
    with_header(path, put_in(state, "callbacks", name))
    with pytest.raises(InputError) as raised:
        fit(small_model(), *stateful(tmp_path), epochs=2)
    assert str(raised.value).startswith(f"{name} cannot be restored from {path}: ") and "\n" not in str(raised.value)
