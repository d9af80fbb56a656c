"""Custom training loops with a `CallbackList` that calls our callbacks, compared with `fit` on the same data."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_rest, assert_same_weights
from curves import curves
from processes import fork_program
from small import BATCH, BATCHES, Do, arrays, fit, names, small_model, with_built_optimizer

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError, RunRecord, counters_of, latest_checkpoint, restore
from callbacks.disk.stored_header import read_header

EPOCHS = 3
X, Y = arrays()


class Stop(Exception):
    """A crash."""


def model_of(strategy=None, optimizer="adam"):
    keras.backend.clear_session(free_memory=False)  # because names are stored
    keras.utils.set_random_seed(3)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        return with_built_optimizer(model)


def train_on_batch(model, x, y):
    return model.train_on_batch(x, y, return_dict=True)


def gradient_tape(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((y - model(x, training=True)) ** 2)
    model.optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))
    return {"loss": loss}


@functools.lru_cache(maxsize=1)  # of the newest model, so that TensorFlow traces the step of each model once
def in_graph(step, model):
    """Returns a compiled step of all replicas."""
    of_replica = tf.function(functools.partial(step, model))
    return lambda x, y: model.distribute_strategy.run(of_replica, (tf.constant(x), tf.constant(y)))


def strategy_run(model, x, y):
    return in_graph(gradient_tape, model)(x, y)


def step_of_model(model, x, y):
    return model.train_step((x, y))


def train_step(model, x, y):
    """Returns a custom step around that of the model, which counts on the device."""
    return in_graph(step_of_model, model)(x, y)


STEPS = [train_on_batch, gradient_tape, strategy_run, train_step]


def run(model, step, *listed, stop_at=None, leaves_out=True, from_epoch=None):
    """Runs the loop of the README with any step, and crashes after a number of batches."""
    checkpoint = next(each for each in listed if isinstance(each, GlobalStepCheckpoint))
    loop = keras.callbacks.CallbackList([*listed], add_history=True, model=model, epochs=EPOCHS, steps=BATCHES)
    loop.on_train_begin()
    trained = 0
    for epoch in range(checkpoint.initial_epoch if from_epoch is None else from_epoch, EPOCHS):
        loop.on_epoch_begin(epoch)
        for i in range(BATCHES):
            if leaves_out and i < checkpoint.batches_done:
                continue
            loop.on_train_batch_begin(i)
            logs = step(model, X[BATCH * i : BATCH * (i + 1)], Y[BATCH * i : BATCH * (i + 1)])
            loop.on_train_batch_end(i, logs)
            trained += 1
            if trained == stop_at:
                raise Stop
        loop.on_epoch_end(epoch, logs)
    loop.on_train_end()


def state(model):
    return [np.asarray(variable) for variable in (*model.variables, *model.optimizer.variables)]


def assert_same_state(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def names_of_fit(tmp_path_factory):
    """The names of the checkpoints of a `fit` on the same data."""
    directory = tmp_path_factory.mktemp("fit")
    fit(model_of(), GlobalStepCheckpoint(directory / "e{epoch}-b{batch}-s{step}.keras", save_freq=4), epochs=EPOCHS)
    return names(directory)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_loop_has_the_names_and_the_counts_of_fit(tmp_path, names_of_fit, step):
    run(
        model_of(),
        step,
        GlobalStepTensorBoard(tmp_path / "tb", update_freq=5),
        GlobalStepCheckpoint(tmp_path / "own/e{epoch}-b{batch}-s{step}.keras", save_freq=4),
    )
    assert names(tmp_path / "own") == names_of_fit and len(names_of_fit) == 8
    assert latest_checkpoint(tmp_path / "own").samples == (120 if step in (train_on_batch, train_step) else 0)
    found = curves(tmp_path / "tb")
    assert [at for at, _ in found["batches", "batch_loss"]] == [5, 10, 15, 20, 25, 30]
    assert [at for at, _ in found["train", "epoch_loss"]] == [10, 20, 30]


@pytest.mark.slow
@pytest.mark.parametrize(
    "step, replicas", [*((step, 1) for step in STEPS), *((step, 2) for step in STEPS if step is not gradient_tape)]
)
def test_a_loop_that_crashed_ends_with_the_same_bits(tmp_path, strategy, step, replicas):
    def life(where, **options):
        model = model_of(strategy(replicas))
        run(model, step, GlobalStepCheckpoint(tmp_path / where / "b{batch:02d}.weights.h5", save_freq=5, resume=True), **options)
        return model

    whole = life("whole")
    with pytest.raises(Stop):
        life("cut", stop_at=18)
    resumed = life("cut")
    assert_same_state(resumed, whole)
    assert counters_of(resumed).read() == counters_of(whole).read()
    assert names(tmp_path / "cut") == names(tmp_path / "whole") == [f"b{batch:02d}.weights.h5" for batch in range(5, 31, 5)]
    assert_same_rest(tmp_path / "cut" / "b30.weights.h5", tmp_path / "whole" / "b30.weights.h5")


def test_train_on_batch_skips_batches_that_are_already_trained_on(tmp_path):
    def life(where, **options):
        model = model_of()
        run(
            model,
            train_on_batch,
            GlobalStepCheckpoint(tmp_path / where / "b{batch:02d}.weights.h5", save_freq=5, resume=True),
            **options,
        )
        return model

    whole = life("whole")
    with pytest.raises(Stop):
        life("cut", stop_at=18)
    resumed = life("cut", leaves_out=False)
    assert_same_state(resumed, whole)
    assert counters_of(resumed).read() == counters_of(whole).read()


def test_a_model_that_its_first_batch_builds_is_restored_by_train_on_batch_and_refused_in_a_custom_step(tmp_path):
    def life(step, **options):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        run(model, step, GlobalStepCheckpoint(tmp_path / "b{batch:02d}.weights.h5", save_freq=5, resume=True), **options)
        return model

    with pytest.raises(Stop):
        life(train_on_batch, stop_at=18)
    with pytest.raises(InputError, match="Build the model before on_train_begin"):
        life(gradient_tape)
    resumed = life(train_on_batch)
    assert int(resumed.optimizer.iterations.numpy()) == 30 == counters_of(resumed).read().batch


def test_a_loop_that_repeats_batches_gets_a_warning(tmp_path):
    for where, options, words in (
        ("epochs", {"from_epoch": 0}, "Training resumes in epoch 2, but this loop begins with epoch 1"),
        ("batches", {"leaves_out": False}, "The first 5 batches of this epoch are trained on twice"),
    ):
        template = str(tmp_path / where / "b{batch:02d}.weights.h5")
        with pytest.raises(Stop):
            run(model_of(), gradient_tape, GlobalStepCheckpoint(template, save_freq=5), stop_at=18)
        with pytest.warns(UserWarning, match=words):
            run(model_of(), gradient_tape, GlobalStepCheckpoint(template, save_freq=5, resume=True), **options)


def test_samples_in_a_name_are_refused_if_they_cannot_be_counted(tmp_path):
    with pytest.raises(InputError, match=r"\{samples\}.*cannot be counted"):
        run(model_of(), gradient_tape, GlobalStepCheckpoint(tmp_path / "{samples}.weights.h5"))
    run(model_of(), train_on_batch, GlobalStepCheckpoint(tmp_path / "{samples}.weights.h5"))
    assert names(tmp_path) == ["120.weights.h5", "40.weights.h5", "80.weights.h5"]


def test_several_steps_for_each_batch_of_the_loop_are_one_batch(tmp_path):
    def twice(model, x, y):
        model.train_on_batch(x, y)
        return model.train_on_batch(x, y, return_dict=True)

    run(model_of(), twice, GlobalStepCheckpoint(tmp_path / "b{batch}-s{step}.weights.h5", save_freq=15))
    assert names(tmp_path) == ["b15-s30.weights.h5", "b30-s60.weights.h5"]


def test_fit_continues_with_the_counters_of_a_loop(tmp_path):
    model = model_of()
    fit(model, GlobalStepCheckpoint(tmp_path / "b{batch}-s{step}.weights.h5"))
    for step in (gradient_tape, train_on_batch):
        run(model, step, GlobalStepCheckpoint(tmp_path / "b{batch}-s{step}.weights.h5", save_freq=1000))
    fit(model, GlobalStepCheckpoint(tmp_path / "b{batch}-s{step}.weights.h5"))
    assert names(tmp_path) == [f"b{batch}-s{batch}.weights.h5" for batch in (10, 40, 70, 80)]


def test_a_loop_knows_no_place_in_the_data_of_a_fit_that_has_failed(tmp_path):
    """The traceback of the error, as a notebook keeps it, keeps the data of the `fit`."""

    def fail():
        raise Stop

    model = small_model()
    with pytest.raises(Stop) as kept:
        fit(model, GlobalStepCheckpoint(tmp_path / "fit" / "b{batch}.weights.h5", save_freq=2), Do(7, fail))
    restore(model, tmp_path / "fit" / "b2.weights.h5")
    run(model, train_on_batch, GlobalStepCheckpoint(tmp_path / "loop" / "b{batch}.weights.h5", save_freq=4))
    assert kept.tb and all(read_header(str(path))["data"] is None for path in (tmp_path / "loop").iterdir())


def test_a_loop_with_an_optimizer_outside_the_model_gets_a_warning(tmp_path):
    model, own = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)]), keras.optimizers.Adam()

    def step(model, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((y - model(x)) ** 2)
        own.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return {"loss": loss}

    with pytest.warns(UserWarning, match="model.optimizer = optimizer"):
        run(model, step, GlobalStepCheckpoint(tmp_path / "b{batch}-s{step}.weights.h5"))
    assert names(tmp_path) == ["b10-s10.weights.h5", "b20-s20.weights.h5", "b30-s30.weights.h5"]


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end"])
def test_a_loop_without_on_train_begin_is_told_to_call_it(tmp_path, hook):
    for callback in (GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"), GlobalStepTensorBoard(tmp_path), RunRecord(tmp_path)):
        callbacks = keras.callbacks.CallbackList([callback], model=small_model(), epochs=1, steps=BATCHES)
        with pytest.raises(InputError) as raised:
            getattr(callbacks, hook)(0)
        assert re.match(
            rf"{type(callback).__name__}\.on_train_begin was not called.*callbacks\.on_train_begin\(\)", str(raised.value)
        )
    assert not any(tmp_path.iterdir())


def test_a_loop_without_a_model_is_told_to_give_one(tmp_path):
    for callback in (GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"), GlobalStepTensorBoard(tmp_path)):
        with pytest.raises(InputError, match=r"set_model was not called.*CallbackList\(callbacks, model=model\)"):
            keras.callbacks.CallbackList([callback], epochs=1, steps=BATCHES).on_train_begin()
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_loop_of_the_readme_is_killed_and_ends_with_the_same_bits(tmp_path):
    for where in ("whole", "cut"):
        (tmp_path / where).mkdir()
    assert fork_program("readme_loop.py", tmp_path / "cut", 70).returncode == -9
    for where in ("whole", "cut"):
        done = fork_program("readme_loop.py", tmp_path / where)
        assert done.returncode == 0, done.stderr
    whole, cut = (tmp_path / where / "run" / "batch_00120.weights.h5" for where in ("whole", "cut"))
    assert_same_weights(cut, whole)
    assert_same_rest(cut, whole)


def test_models_of_other_tests_train_in_a_custom_loop(tmp_path):
    run(small_model(), gradient_tape, GlobalStepCheckpoint(tmp_path / "last.weights.h5"))
    assert names(tmp_path) == ["last.weights.h5"]
