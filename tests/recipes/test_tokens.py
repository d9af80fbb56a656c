"""Texts as tokens: windows, held-out files, files of tokens, and epochs that share a pass over the data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from token_streams import stream, token_file

from callbacks import Counts, InputError, counters_of
from recipes.common.data import tokens, training_data, validation_data
from recipes.common.data.tokens import Windows, bytes_of_folder, standard_library, token_files
from recipes.common.distribution import Distribution
from recipes.common.run import run
from recipes.transformer_lm import decode_bytes

SINGLE = Distribution("single", ("/cpu:0",))


def mirrored(strategy, replicas):
    return Distribution("mirrored", tuple(f"/cpu:{i}" for i in range(replicas)), strategy(replicas))


def test_windows_follow_one_another_and_the_targets_are_the_tokens_after():
    windows = stream(14)
    assert len(windows) == 3
    x, y = windows.fetch(tf.constant([2, 0], tf.int64))
    assert x.numpy().tolist() == [[8, 9, 10, 0], [0, 1, 2, 3]]
    assert y.numpy().tolist() == [[9, 10, 0, 1], [1, 2, 3, 4]]
    assert x.dtype == y.dtype == tf.int32


def epoch_of(model, where, number, **options):
    """Returns the first token of each window, batch by batch."""
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


def test_epochs_share_a_pass_over_the_data_for_one_and_two_replicas(strategy):
    passes = []
    for where in (SINGLE, mirrored(strategy, 2)):
        with where.scope():
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        passes.append([epoch_of(model, where, number) for number in range(4)])
        rest = epoch_of(model, where, 1, batches_in_epoch=2, samples_in_epoch=16)
        assert rest == passes[-1][1][2:]
    assert passes[0] == passes[1]
    first_pass = [number for epoch in passes[0][:3] for batch in epoch for number in batch]
    assert len(set(first_pass)) == len(first_pass) == 72  # three epochs of three batches of eight, each window once
    assert passes[0][3] != passes[0][0]


def test_held_out_files_are_selected_only_by_their_names(tmp_path):
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


def test_files_of_tokens_are_not_read_into_memory(tmp_path):
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
def test_files_that_do_not_contain_tokens_are_refused_at_the_start(tmp_path, train, validation, words):
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


def test_a_token_outside_the_vocabulary_is_named_when_it_is_read(monkeypatch, capsys):
    monkeypatch.setattr(tokens, "_LOOKED_AT", 10)
    values = np.ones(100, "uint16")
    values[50] = 999
    windows = Windows(values, 4, 50, "train.bin")
    data = validation_data(windows, SINGLE, global_batch_size=4)
    with pytest.raises(SystemExit) as ended:
        run(lambda: list(data.get_tf_dataset()))
    assert ended.value.code == 2
    expected = "error: Tokens must be below --vocabulary-size 50. Received: token 999 at position 50 of train.bin.\n"
    assert capsys.readouterr().err == expected
