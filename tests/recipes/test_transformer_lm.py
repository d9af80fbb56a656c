"""The recipe of the language model: its metrics and texts, and the guarantees of all recipes."""

import functools
import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from bare_ranks import run_ranks
from compare import assert_same_weights, datasets
from launching import ENGINES
from processes import USER_ENVIRONMENT, Process, copy_until, run_program
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from token_streams import VOCABULARY, stream, token_file

from callbacks import GlobalStepCheckpoint, InputError, latest_checkpoint
from recipes.common.data import training_data, validation_data
from recipes.common.distribution import Distribution
from recipes.common.run.language import Bits, TextSamples
from recipes.transformer_lm import SIZES, Size, build_model, build_optimizer, parse_args

TINY = Size(blocks=1, heads=2, width=8, context=4, accumulated=1, training={})
RECIPE, ONE_BLOCK, IN_FLOATX = "recipes.transformer_lm", "tests.programs.small_networks", "tests.programs.with_floatx"
SINGLE = Distribution("single", ("/cpu:0",))


def mirrored(strategy, replicas):
    return Distribution("mirrored", tuple(f"/cpu:{i}" for i in range(replicas)), strategy(replicas))


def compiled(where=SINGLE, accumulated=1):
    with where.scope():
        model = build_model(TINY, VOCABULARY)
        model.compile(
            where.optimizer(build_optimizer(0.01, accumulated)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    return model


# Model and optimizer


@pytest.mark.parametrize("replicas, accumulated", [(1, 1), (2, 1), (2, 2)])
def test_weight_decay_applies_only_to_matrices(strategy, replicas, accumulated):
    where = mirrored(strategy, replicas) if replicas > 1 else SINGLE
    model = compiled(where, accumulated)
    with where.scope():
        model.optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones_like(variable))

    def apply_nothing():
        model.optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables])

    for _ in range(accumulated):
        where.strategy.run(apply_nothing) if where.strategy else apply_nothing()
    decayed = {v.path for v in model.trainable_variables if (v.numpy() != 1).any()}
    assert decayed == {v.path for v in model.trainable_variables if v.path.endswith("kernel")}
    assert len(decayed) == 4 * TINY.blocks


def test_a_token_attends_only_to_earlier_tokens():
    model = build_model(TINY, VOCABULARY)
    one, other = np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 9]])
    a, b = model.predict(one, verbose=0)[0], model.predict(other, verbose=0)[0]
    np.testing.assert_array_equal(a[:3], b[:3])
    assert (a[3] != b[3]).any()
    assert (model.predict(np.array([[2, 2, 3, 4]]), verbose=0)[0, 1] != a[1]).any()


@pytest.mark.slow
def test_a_saved_model_loads_with_stock_keras_in_another_process(tmp_path):
    model = compiled()
    data = training_data(stream(41), model, SINGLE, global_batch_size=4, seed=0)
    model.fit(data, verbose=0, callbacks=[GlobalStepCheckpoint(tmp_path / "at_{batch}.keras")])
    names = tmp_path / "at_2.keras", tmp_path / "probe.npy"
    loaded = run_program("load_language_model.py", *names, cwd="/", env=USER_ENVIRONMENT)
    assert loaded.returncode == 0, loaded.stderr
    expected = model.predict(np.arange(4)[np.newaxis], verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "probe.npy"), expected, rtol=1e-5)


# Validation


@pytest.mark.parametrize("replicas", [1, 2])
def test_bits_per_byte_are_those_of_numpy_for_a_prime_number_of_windows(strategy, replicas):
    windows = stream(4 * 13 + 2)
    where = mirrored(strategy, replicas) if replicas > 1 else SINGLE
    model = compiled(where)
    logs = {"val_loss": model.evaluate(validation_data(windows, where, global_batch_size=4), verbose=0)}
    Bits("bits_per_byte").on_epoch_end(0, logs)

    x, y = (part.numpy() for part in windows.fetch(tf.range(13, dtype=tf.int64)))
    logits = model.predict(x, verbose=0).astype("float64")
    log2_probabilities = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))) / math.log(2)
    bits = -np.take_along_axis(log2_probabilities, y[..., np.newaxis], axis=-1).sum()
    assert logs["val_bits_per_byte"] == pytest.approx(bits / 52, rel=1e-6)


def texts(directory):
    """Returns step -> text, and the number of texts written."""
    events = EventAccumulator(str(directory), size_guidance={TENSORS: 0})
    events.Reload()
    found = events.Tensors("sample")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in found}, len(found)


@pytest.mark.slow
def test_a_text_is_written_once_even_if_its_validation_is_repeated(tmp_path):
    model, windows = compiled(), stream(41)

    def sampling():
        return TextSamples(SINGLE, str(tmp_path / "samples"), np.array([1, 2]), length=4, decode="{}".format, seed=0)

    model.fit(
        training_data(windows, model, SINGLE, global_batch_size=4, seed=0),
        validation_data=validation_data(windows, SINGLE, global_batch_size=4),
        epochs=2,
        verbose=0,
        callbacks=[sampling(), GlobalStepCheckpoint(tmp_path / "at_{batch}.weights.h5")],
    )
    written, count = texts(tmp_path / "samples")
    assert list(written) == [2, 4] and count == 2
    assert all(text.startswith("    [1 2 ") for text in written.values())

    of_the_next_attempt = sampling()
    of_the_next_attempt.set_model(model)
    of_the_next_attempt.on_train_begin()
    of_the_next_attempt.on_epoch_end(1, {"val_loss": 1.0})
    assert texts(tmp_path / "samples") == (written, 2)


def test_only_the_chief_writes_texts(tmp_path):
    of_another_rank = types.SimpleNamespace(is_chief=False)
    samples = TextSamples(of_another_rank, str(tmp_path / "samples"), np.array([1]), length=2, decode=str, seed=0)
    samples.on_train_begin()
    samples.on_epoch_end(0, {"val_loss": 1.0})
    assert not list(tmp_path.iterdir())


# Flags


def test_the_size_determines_the_defaults_of_training(tmp_path):
    nano, small = (parse_args(["--workdir", str(tmp_path), "--size", size]) for size in ("nano", "small"))
    assert (nano.context, nano.gradient_accumulation_steps) == (256, 1)
    assert (small.context, small.global_batch_size * small.gradient_accumulation_steps) == (1024, 480)
    with pytest.raises(InputError, match="--size"):
        parse_args(["--size", "huge"])


# Whole runs

WITHIN_ACCUMULATION = 16  # of three batches each; and in the middle of an epoch of fourteen
LAST = 28


@pytest.fixture(scope="module")
def texts_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(f"{number} bottles of milk on the wall, {number} bottles of milk. " * 4)
    return folder


@pytest.fixture(scope="module")
def flags(texts_folder):
    flags = ["--data", texts_folder, "--context", 16, "--global-batch-size", 12, "--epochs", 2, "--epochs-per-pass", 3]
    return [*flags, "--gradient-accumulation-steps", 3, "--sample-tokens", 4]


def checkpoint(workdir, batch):
    return workdir / "checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"


@pytest.fixture(scope="module")
def train(flags):
    """Trains in float64, in which the order of sums hardly matters. Returns the output."""

    def in_directory(workdir, strategy):
        program = ["float64", ONE_BLOCK, RECIPE, *flags, "--save-freq", 4, "--keep-last", 4, "--workdir", workdir]
        program += ["--strategy", strategy]
        if strategy in ENGINES:
            results = run_ranks(2, "-m", IN_FLOATX, *program, engine=strategy)
        else:
            devices = ["--virtual-devices", 2 if strategy == "mirrored" else 1]
            results = [Process(*program, *devices, module=IN_FLOATX).finish()]
        for code, _, errors in results:
            assert code == 0, errors
        return results[0][1]

    return in_directory


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    """Returns the directory of a run that was not interrupted."""

    @functools.cache
    def of(strategy):
        workdir = tmp_path_factory.mktemp(strategy)
        assert f"trained on   {LAST} batches, {LAST * 12} samples, {LAST // 3} steps" in train(workdir, strategy)
        return workdir

    return of


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", *ENGINES])
def test_a_restart_within_an_accumulation_does_not_change_the_result(train, uninterrupted, tmp_path, strategy):
    whole, resumed = uninterrupted(strategy), tmp_path / "resumed"
    copy_until(whole, resumed, WITHIN_ACCUMULATION)
    out = train(resumed, strategy)
    assert f": batch {WITHIN_ACCUMULATION}, epoch 2" in out and f"trained on   {LAST} batches" in out, out
    assert_same_weights(checkpoint(whole, LAST), checkpoint(resumed, LAST))
    assert texts(whole / "tensorboard/samples") == texts(resumed / "tensorboard/samples")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", *ENGINES])
def test_two_replicas_and_two_ranks_end_with_the_weights_of_one_replica(uninterrupted, strategy):
    single, other = (uninterrupted(name) for name in ("single", strategy))
    found = datasets(checkpoint(other, LAST))
    for name, value in datasets(checkpoint(single, LAST)).items():
        assert np.abs(found[name] - value).max() <= 1e-12 * max(np.abs(value).max(), 1e-30), name
    metrics, expected = (latest_checkpoint(each / "checkpoints").metrics for each in (other, single))
    assert metrics["val_bits_per_byte"] == pytest.approx(expected["val_loss"] / math.log(2), rel=1e-9)


def test_small_has_the_size_of_gpt2():
    """Without learned positions, and with a padded vocabulary."""
    with keras.StatelessScope(initialize_variables=False):
        model = build_model(SIZES["small"], 50304)
    assert model.count_params() == 12 * 7_087_872 + 1536 + 50304 * 768


@pytest.mark.slow
def test_small_trains_on_tokens_and_resumes_exactly_in_the_middle_of_an_epoch(recipe, tmp_path):
    random = np.random.default_rng(0)
    token_file(tmp_path / "val.bin", random.integers(0, 50257, 40))
    data = token_file(tmp_path / "train.bin", random.integers(0, 50257, 130))
    flags = ["--size", "small", "--data", data, "--context", 16, "--global-batch-size", 2, "--gradient-accumulation-steps", 1]
    flags += ["--epochs", 1, "--epochs-per-pass", 1, "--sample-tokens", 0, "--save-freq", 2, "--workdir"]
    code, _, errors = recipe(RECIPE, *flags, tmp_path / "uninterrupted", module=ONE_BLOCK).finish()
    assert code == 0, errors
    copy_until(tmp_path / "uninterrupted", tmp_path / "resumed", 2)
    code, out, errors = recipe(RECIPE, *flags, tmp_path / "resumed", module=ONE_BLOCK).finish()
    assert code == 0, errors
    assert "begins       from" in out and "val_bits_per_token" in out
    assert_same_weights(*(checkpoint(tmp_path / name, 4) for name in ("uninterrupted", "resumed")))
