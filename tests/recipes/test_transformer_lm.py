"""The language model's recipe: its data, what it reports, and the promises of all recipes."""

import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from bare_ranks import run_ranks
from compare import assert_same_weights, datasets
from launching import ENGINES
from processes import PROGRAMS, USER_ENVIRONMENT, copy_until, run_program
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from callbacks import Counts, GlobalStepCheckpoint, InputError, counters_of, latest_checkpoint
from recipes.common.data import tokens, training_data, validation_data
from recipes.common.data.tokens import Windows, bytes_of_folder, standard_library, token_files
from recipes.common.distribution import Distribution
from recipes.common.run import run
from recipes.common.run.language import Bits, TextSamples
from recipes.transformer_lm import Size, build_model, build_optimizer, check_compile, decode_bytes, parse_args

TINY = Size(blocks=1, heads=2, width=8, context=4, accumulated=1, training={})
VOCABULARY = 11
MODULE = "recipes.transformer_lm"
SINGLE = Distribution("single", ("/cpu:0",))


def mirrored(strategy, replicas):
    return Distribution("mirrored", tuple(f"/cpu:{i}" for i in range(replicas)), strategy(replicas))


def stream(size, context=4):
    """Windows whose tokens tell their place, up to the size of the vocabulary."""
    return Windows(np.arange(size, dtype="uint8") % VOCABULARY, context, VOCABULARY, "a stream")


def compiled(where=SINGLE, accumulated=1):
    with where.scope():
        model = build_model(TINY, VOCABULARY)
        model.compile(
            where.optimizer(build_optimizer(0.01, accumulated)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    return model


# Data


def test_windows_follow_one_another_and_the_targets_are_the_tokens_after():
    windows = stream(14)
    assert len(windows) == 3
    x, y = windows.fetch(tf.constant([2, 0], tf.int64))
    assert x.numpy().tolist() == [[8, 9, 10, 0], [0, 1, 2, 3]]
    assert y.numpy().tolist() == [[9, 10, 0, 1], [1, 2, 3, 4]]
    assert x.dtype == y.dtype == tf.int32


def epoch_of(model, where, number, **options):
    """The first token of each window, batch by batch."""
    counters = counters_of(model)
    counters.resume(Counts(epoch=number + 1, **options))
    counters.begin_epoch(number)
    windows = Windows(np.arange(81, dtype="uint8"), 1, 256, "numbers")
    data = training_data(windows, model, where, global_batch_size=8, seed=5, epochs_per_pass=3)
    data.on_epoch_begin()
    local = where.strategy.experimental_local_results if where.strategy else lambda value: (value,)
    found = [np.concatenate([share.numpy()[:, 0] for share in local(x)]).tolist() for x, _ in data.get_tf_dataset()]
    assert len(found) == data.num_batches - options.get("batches_in_epoch", 0)
    return found


def test_epochs_share_a_pass_over_the_data_in_one_order_for_one_and_two_replicas(strategy):
    passes = []
    for where in (SINGLE, mirrored(strategy, 2)):
        with where.scope():
            model = build_model(TINY, VOCABULARY)
        passes.append([epoch_of(model, where, number) for number in range(4)])
        rest = epoch_of(model, where, 1, batches_in_epoch=2, samples_in_epoch=16)
        assert rest == passes[-1][1][2:]
    assert passes[0] == passes[1]
    first_pass = [number for epoch in passes[0][:3] for batch in epoch for number in batch]
    assert len(set(first_pass)) == len(first_pass) == 72  # three epochs of three batches of eight, each window once
    assert passes[0][3] != passes[0][0]


def test_held_out_files_are_chosen_by_their_names_alone(tmp_path):
    def held_out():
        return {name[:4] for name in bytes_of_folder(str(tmp_path), context=4)[1].tokens.tobytes().decode().split("\0")[1:]}

    for number in range(100):
        (tmp_path / f"{number:02d}.txt").write_text(f"{number:04d} is the text of a file")
    before = held_out()
    assert 0 < len(before) < 20
    (tmp_path / "added.txt").write_text("one more text of a file")
    assert held_out() - {"one "} == before
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "other.txt").write_text("a test")
    train, validation = bytes_of_folder(str(tmp_path), context=4)
    assert b"a test" not in train.tokens.tobytes() + validation.tokens.tobytes()


def test_the_standard_library_is_some_megabytes_of_text():
    train, validation = standard_library(256)
    assert 5e6 < len(train.tokens) < 3e7
    assert 2e5 < len(validation.tokens) < 2e6
    assert "def " in decode_bytes(validation.tokens[:100_000])


def token_file(path, values):
    np.array(values, "<u2").tofile(path)
    return str(path)


def test_files_of_tokens_stay_on_the_disk(tmp_path):
    token_file(tmp_path / "val.bin", range(20))
    train, validation = token_files(token_file(tmp_path / "train.bin", range(100)), context=4, vocabulary=200)
    assert isinstance(train.tokens, np.memmap) and isinstance(validation.tokens, np.memmap)
    assert (len(train), len(validation)) == (24, 4)


@pytest.mark.parametrize(
    "train, validation, words",
    [
        (None, [1] * 9, "train.bin cannot be read: No such file"),
        ([1] * 9, None, "val.bin cannot be read: No such file.*`val.bin` beside"),
        (b"odd", [1] * 9, "two bytes.*train.bin with 3 bytes"),
        (b"", [1] * 9, "two bytes.*train.bin with 0 bytes"),
        ([1] * 4, [1] * 9, "4 tokens and the next one. Received: 4 tokens in .*train.bin.*smaller --context"),
        ([1] * 9, [1] * 4, "Received: 4 tokens in .*val.bin"),
        ([1, 2, 50, 3, 3, 3], [1] * 9, "below --vocabulary-size 50. Received: token 50 at position 2 of .*train.bin"),
    ],
)
def test_files_that_are_no_tokens_are_refused_at_the_start(tmp_path, train, validation, words):
    for name, content in (("train.bin", train), ("val.bin", validation)):
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else np.array(content, "<u2").tobytes())
    with pytest.raises(InputError, match=words) as raised:
        token_files(str(tmp_path / "train.bin"), context=4, vocabulary=50)
    assert "\n" not in str(raised.value)


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="two files"):
        bytes_of_folder(str(tmp_path), context=4)


def test_less_than_a_global_batch_in_each_epoch_is_refused():
    with pytest.raises(InputError, match=r"global batch, of 8, and is 1/4 of a pass.*Received: 3 samples"):
        training_data(stream(14), None, SINGLE, global_batch_size=8, seed=0, epochs_per_pass=4)


def test_a_token_in_the_middle_of_a_file_that_is_not_in_the_vocabulary_is_named_when_it_is_read(monkeypatch, capsys):
    monkeypatch.setattr(tokens, "_LOOKED_AT", 10)
    values = np.ones(100, "uint16")
    values[50] = 999
    windows = Windows(values, 4, 50, "train.bin")
    data = validation_data(windows, SINGLE, global_batch_size=4)
    with pytest.raises(SystemExit) as ended:
        run(lambda: list(data.get_tf_dataset()))
    assert ended.value.code == 2
    expected = "error: Tokens are below --vocabulary-size 50. Received: token 999 at position 50 of train.bin.\n"
    assert capsys.readouterr().err == expected


# Model and optimizer


@pytest.mark.parametrize("replicas, accumulated", [(1, 1), (2, 1), (2, 2)])
def test_weight_decay_is_for_matrices_alone(strategy, replicas, accumulated):
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


def test_a_token_sees_those_before_it_and_none_after():
    model = build_model(TINY, VOCABULARY)
    one, other = np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 9]])
    a, b = model.predict(one, verbose=0)[0], model.predict(other, verbose=0)[0]
    np.testing.assert_array_equal(a[:3], b[:3])
    assert (a[3] != b[3]).any()
    assert (model.predict(np.array([[2, 2, 3, 4]]), verbose=0)[0, 1] != a[1]).any()


@pytest.mark.slow
def test_a_whole_model_loads_with_stock_keras_in_another_process(tmp_path):
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
    """Step -> text, and how often anything was written."""
    events = EventAccumulator(str(directory), size_guidance={TENSORS: 0})
    events.Reload()
    found = events.Tensors("sample")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in found}, len(found)


@pytest.mark.slow
def test_a_text_is_written_once_for_each_validation_also_when_that_is_done_again(tmp_path):
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

    of_the_next_life = sampling()
    of_the_next_life.set_model(model)
    of_the_next_life.on_train_begin()
    of_the_next_life.on_epoch_end(1, {"val_loss": 1.0})
    assert texts(tmp_path / "samples") == (written, 2)


def test_only_the_chief_writes_texts(tmp_path):
    of_another_rank = types.SimpleNamespace(is_chief=False)
    samples = TextSamples(of_another_rank, str(tmp_path / "samples"), np.array([1]), length=2, decode=str, seed=0)
    samples.on_train_begin()
    samples.on_epoch_end(0, {"val_loss": 1.0})
    assert not list(tmp_path.iterdir())


# Flags


def test_compile_is_refused_where_xla_cannot_compile_what_replicas_do_together():
    for where, words in (
        (Distribution("horovod", ("/gpu:0",), ranks=types.SimpleNamespace(size=2)), "--compile does not go with several ranks"),
        (Distribution("mirrored", ("/cpu:0", "/cpu:1")), "--compile does not go with several CPU devices"),
    ):
        with pytest.raises(InputError, match=words):
            check_compile(where)
    check_compile(SINGLE)
    check_compile(Distribution("mirrored", ("/gpu:0", "/gpu:1")))


def test_the_size_decides_on_the_defaults_of_training(tmp_path):
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


@pytest.mark.slow
def test_kills_within_an_accumulation_change_nothing_on_two_replicas(recipe, tmp_path, flags):
    flags = [*flags, "--virtual-devices", 2]
    code, out, errors = recipe(*flags, "--save-freq", LAST, "--workdir", tmp_path / "whole", module=MODULE).finish()
    assert code == 0, errors
    assert f"trained on   {LAST} batches, {LAST * 12} samples, {LAST // 3} steps" in out
    killed = [*flags, "--save-freq", 1, "--workdir", tmp_path / "killed"]
    recipe(*killed, module=MODULE).kill_when(checkpoint(tmp_path / "killed", WITHIN_ACCUMULATION).exists)
    code, out, errors = recipe(*killed, module=MODULE).finish()
    assert code == 0, errors
    assert "begins       from" in out and f"trained on   {LAST} batches" in out
    assert_same_weights(checkpoint(tmp_path / "whole", LAST), checkpoint(tmp_path / "killed", LAST))
    assert texts(tmp_path / "whole/tensorboard/samples") == texts(tmp_path / "killed/tensorboard/samples")


@pytest.mark.slow
def test_a_restart_within_an_accumulation_changes_nothing_on_two_ranks(tmp_path, flags, engine):
    command = ["-m", MODULE, *flags, "--strategy", engine, "--save-freq", 4, "--workdir"]
    for workdir in ("whole", "resumed"):
        for code, _, errors in run_ranks(2, *command, tmp_path / workdir, engine=engine):
            assert code == 0, errors
        if workdir == "whole":
            copy_until(tmp_path / "whole", tmp_path / "resumed", WITHIN_ACCUMULATION)
    assert_same_weights(checkpoint(tmp_path / "whole", LAST), checkpoint(tmp_path / "resumed", LAST))
    assert texts(tmp_path / "whole/tensorboard/samples") == texts(tmp_path / "resumed/tensorboard/samples")


@pytest.mark.slow
def test_one_replica_two_replicas_and_two_ranks_end_with_equal_weights(tmp_path, flags):
    program = ["float64", MODULE, *flags, "--save-freq", LAST, "--workdir"]
    for name, options in (("single", []), ("mirrored", ["--virtual-devices", "2"])):
        done = run_program("with_floatx.py", *program, tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    for engine in ENGINES:
        command = [PROGRAMS / "with_floatx.py", *program, tmp_path / engine, "--strategy", engine]
        for code, _, errors in run_ranks(2, *command, engine=engine):
            assert code == 0, errors
    names = ("single", "mirrored", *ENGINES)
    single, *others = (datasets(checkpoint(tmp_path / name, LAST)) for name in names)
    for other in others:
        for name, value in single.items():
            assert np.abs(other[name] - value).max() <= 1e-12 * max(np.abs(value).max(), 1e-30), name
    metrics = [latest_checkpoint(tmp_path / name / "checkpoints").metrics for name in names]
    for each in metrics:
        assert each["val_bits_per_byte"] == pytest.approx(metrics[0]["val_loss"] / math.log(2), rel=1e-9)


@pytest.mark.slow
def test_gpt2_small_trains_and_resumes_exactly_in_the_middle_of_an_epoch(recipe, tmp_path):
    random = np.random.default_rng(0)
    token_file(tmp_path / "val.bin", random.integers(0, 50257, 40))
    data = token_file(tmp_path / "train.bin", random.integers(0, 50257, 130))
    flags = ["--size", "small", "--data", data, "--context", 16, "--global-batch-size", 2, "--gradient-accumulation-steps", 1]
    flags += ["--epochs", 1, "--epochs-per-pass", 1, "--sample-tokens", 0]
    flags += ["--save-freq", 2]
    code, _, errors = recipe(*flags, "--workdir", tmp_path / "whole", module=MODULE).finish()
    assert code == 0, errors
    copy_until(tmp_path / "whole", tmp_path / "resumed", 2)
    code, out, errors = recipe(*flags, "--workdir", tmp_path / "resumed", module=MODULE).finish()
    assert code == 0, errors
    assert "begins       from" in out and "val_bits_per_token" in out
    whole, resumed = (checkpoint(tmp_path / name, 4) for name in ("whole", "resumed"))
    assert_same_weights(whole, resumed)
    parameters = sum(value.size for name, value in datasets(whole).items() if name.startswith("layers/"))
    assert parameters == 12 * 7_087_872 + 1536 + 50304 * 768  # without its places, with a padded vocabulary
