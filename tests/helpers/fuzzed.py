"""Changes every part of a header, and lets every reader of checkpoints answer."""

import json
import warnings
from dataclasses import astuple

import h5py
import keras
import numpy as np
import tensorflow as tf
from hostile import hdf5_of, with_header
from small import BATCH, arrays, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError, counters_of, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.disk import files

DELETED = object()
NAN, DEEP, DEEPER = float("nan"), 90, 500


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


VALUES = [
    DELETED, None, True, False, NAN, float("inf"), -1, 0, 3, 10**17, 10**30, 10**400, -(10**17), 1.5, 1e300, "", "x" * 300,
    "\x1b[31m\nx", "y" * 1_000_000, [], [[]], [1, 2], {}, {"a": 1}, {"array": [0, "<f4", [10**12]]}, {"scalar": [0, "O"]},
    nested(DEEP), nested(DEEPER),
]  # fmt: skip


class Journal(keras.callbacks.Callback):
    """Has a state with an array, a scalar and nested dicts."""

    losses = np.zeros(2)

    def get_state(self):
        return {"losses": self.losses, "last": self.losses.sum(), "dict": {"array": [1, "a"]}}

    def set_state(self, state):
        self.losses = np.asarray(state["losses"], "float64")


def train(directory, epochs, stop_at=None):
    """Trains with every kind of state; in the middle, the training may end with an error. Returns the checkpoints and the model."""
    keras.utils.set_random_seed(1)
    model = small_model(run_eagerly=True)
    template = str(directory / "checkpoints" / "b{batch}.weights.h5")
    checkpoint = GlobalStepCheckpoint(template, save_freq=5, background=False, resume=True)
    callbacks = [
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True, patience=9),
        keras.callbacks.ReduceLROnPlateau("loss"),
        GlobalStepTensorBoard(directory / "events", write_graph=False),
        Journal(),
        checkpoint,
    ]
    if stop_at:
        callbacks.append(keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: _stop(model, stop_at)))
    data = tf.data.Dataset.from_tensor_slices(arrays()).shuffle(8, seed=3).batch(BATCH)
    model.fit(data, epochs=epochs, verbose=0, callbacks=callbacks)
    return checkpoint, model


class Stopped(Exception):
    """Ends a training in the middle."""


def _stop(model, batch):
    if model.optimizer.iterations.numpy() == batch:
        raise Stopped


def parts(value, path=()):
    """Yields the path of every part of a header; of a list, and of the variables, only the first and the last."""
    if path:
        yield path
    if isinstance(value, dict):
        keys = list(value)
        for key in dict.fromkeys((keys[0], keys[-1])) if path == ("variables",) else keys:
            yield from parts(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for place in sorted({0, len(value) - 1}):
            yield from parts(value[place], (*path, place))


def header_of(path):
    with h5py.File(hdf5_of(path), "r") as file:
        return json.loads(file["global_step/header"][()].tobytes())


def put_in(header, path, value):
    *holders, last = path
    for key in holders:
        header = header[key]
    if value is DELETED:
        del header[last]
    else:
        header[last] = value


def assert_answers(directory, path, part, value):
    """Changes a part of a checkpoint's header, and checks that every reader answers in one line or with the right counters."""
    with_header(path, lambda header: put_in(header, part, value))
    trailer, what = files.verify(path), f"{part} = {value!r:.60}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["list", str(path.parent)]) == 0, what
        verified = main(["verify", str(path.parent)])
        found = None
        try:
            found = latest_checkpoint(path.parent)
            assert found is None or not verified, what
            assert found is not None or verified or value is False, what  # it may say that its values are not finite
            assert found is None or (found.batch, found.step, found.epoch, found.samples) == astuple(trailer), what
        except InputError as error:  # the format is unknown
            assert_one_line(error, path, what)
        assert_restores(path, trailer, what)
        if found:  # else `fit` begins again
            assert_resumes(directory, path, trailer, what)


def assert_restores(path, trailer, what):
    model = small_model(run_eagerly=True)
    try:
        found = restore(model, path)
    except InputError as error:
        assert_one_line(error, path, what)
    else:
        assert counters_of(model).read().batch == (trailer.batch if found else 0), what


def assert_resumes(directory, path, trailer, what):
    """Checks a `fit` that resumes: it ends with an error in one line, or counts exactly."""
    try:
        checkpoint, model = train(directory, epochs=2)
    except InputError as error:
        assert_one_line(error, path, what)
        return
    counts, begun = counters_of(model).read(), checkpoint.resumed_from
    if begun is not None:
        assert (begun.path, begun.batch) == (str(path), trailer.batch), what
    trained = int(model.optimizer.iterations.numpy()) - (trailer.step if begun else 0)
    assert counts.batch == (trailer.batch if begun else 0) + trained, what
    last = latest_checkpoint(path.parent)
    assert last is None or last.batch == counts.batch, what


def assert_one_line(error, path, what):
    text = str(error)
    assert str(path) in text and text.isprintable() and len(text) < 2000, (what, text)
