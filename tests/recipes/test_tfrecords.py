"""TFRecord files are read at any position, with one index, and errors name the file and the record."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from shards import opened, use, write_shard, write_shards

from callbacks import InputError
from callbacks.disk import folders
from recipes.common.data import Arrays, BadSample, tfrecords, training_data
from recipes.common.data.tfrecords import naming_bad_records
from recipes.common.distribution import Distribution
from recipes.mnist import build_model


@pytest.mark.parametrize("size", [0, 20, 200_000])
def test_any_record_equals_that_of_a_tfrecord_dataset(tmp_path, size):
    """In batches that are too small for threads, and in larger batches."""
    write_shards(tmp_path, size=size)
    names = sorted(str(path) for path in tmp_path.iterdir())
    expected = [each.numpy() for each in tf.data.TFRecordDataset(names)]
    records = opened(tmp_path)
    assert [records.record(number) for number in range(len(records))] == expected
    for numbers in ([8, 0, 3, 3, 4], range(9), [5]):
        (found,) = records.fetch(tf.constant(list(numbers), tf.int64))
        assert found.numpy().tolist() == [expected[number] for number in numbers]


def test_empty_records_are_records_too(tmp_path):
    write_shard(tmp_path / "train-00000-of-00001", [b"", b"one", b"", b""])
    records = opened(tmp_path)
    assert [records.record(number) for number in range(4)] == [b"", b"one", b"", b""]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# A record of these tests takes 12 + 24 + 4 bytes.
@pytest.mark.parametrize(
    "corrupt, words",
    [
        (lambda shard: cut(shard, -1), r"train-00002-of-00003 is truncated in record 4 .* ends at byte 199\. Copy it again"),
        (lambda shard: cut(shard, 85), r"is truncated in record 2 .* ends at byte 85"),
        (lambda shard: cut(shard, 0), r"train-00002-of-00003 is empty"),
        (lambda shard: flip(shard, 40), r"train-00002-of-00003 is corrupt from record 1 .* checksum of its length"),
        (lambda shard: flip(shard, 49), r"is corrupt from record 1 "),
        (
            lambda shard: shard.write_bytes(b"text, and no TFRecord file at all"),
            r"is not a TFRecord file, or is corrupt from record 0",
        ),
        (lambda shard: shard.unlink(), r"has 2 of 3 files for train\. The first missing file: train-00002-of-00003"),
        (lambda shard: shutil.copy(shard, shard.with_name("train-00000-of-00001")), r"train-\*-of-00001 and train-\*-of-00003"),
        (lambda shard: write_shard(shard, [b"bad one", b"good"]), r"train-00002-of-00003, record 0 .*: .*it begins with bad"),
    ],
)
def test_corrupt_and_missing_shards_are_named_before_training(tmp_path, corrupt, words):
    write_shards(tmp_path)
    corrupt(tmp_path / "train-00002-of-00003")
    with pytest.raises(InputError, match=words) as raised:
        opened(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_path_without_shards_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no such file"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read: .*No such file"):
        opened(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be read: .*Not a directory"):
        opened(tmp_path / "file")


SINGLE = Distribution("single", ("/cpu:0",))


def epoch_of(source, distribution=SINGLE, prepare=None, global_batch_size=4, begin=0):
    """Returns the global batches of one epoch, each as the concatenation of the replicas' shares."""
    with distribution.scope():
        model = build_model("mlp", (1, 1, 1))
    data = training_data(source, model, distribution, global_batch_size=global_batch_size, seed=5, prepare=prepare)
    data.on_epoch_begin()
    local = distribution.strategy.experimental_local_results if distribution.strategy else lambda value: (value,)
    return [[each for share in local(batch[0]) for each in share.numpy().tolist()] for batch in data.get_tf_dataset()]


def unchanged(record, seed):
    return (record,)


def test_the_order_is_the_same_for_any_number_of_replicas_and_for_arrays(tmp_path, strategy):
    written = write_shards(tmp_path, counts=(30, 1, 19))
    records = opened(tmp_path)
    orders = []
    for replicas in (1, 2, 4):
        devices = tuple(f"/cpu:{i}" for i in range(replicas))
        where = Distribution("any", devices, strategy(replicas) if replicas > 1 else None)
        orders.append(epoch_of(records, where, unchanged, global_batch_size=8))
    assert orders[0] == orders[1] == orders[2]
    assert [len(batch) for batch in orders[0]] == [8] * 6
    numbers = epoch_of(Arrays(np.arange(50), np.arange(50)), global_batch_size=8)
    assert orders[0] == [[written[number] for number in batch] for batch in numbers]


def test_a_record_with_changed_bytes_that_cannot_be_used_is_named(tmp_path):
    write_shard(tmp_path / "train-00000-of-00001", [b"good", b"cad!", b"good", b"good"])
    records = opened(tmp_path)
    shard = tmp_path / "train-00000-of-00001"
    shard.write_bytes(shard.read_bytes().replace(b"cad!", b"bad!"))

    def prepare(record, seed):
        use(record)
        return (record,)

    words = (
        r"train-00000-of-00001, record 1 \(counted from 0\): its checksum is wrong, so its bytes have changed.*it begins with bad"
    )
    with pytest.raises(BadSample, match=words), naming_bad_records(records, use=use):
        epoch_of(records, prepare=prepare)


def test_a_shard_that_becomes_shorter_during_training_is_named(tmp_path):
    write_shards(tmp_path)
    records = opened(tmp_path)
    cut(tmp_path / "train-00002-of-00003", 100)
    with (
        pytest.raises(BadSample, match=r"train-00002-of-00003, record [234] .*has become shorter"),
        naming_bad_records(records, use=use),
    ):
        epoch_of(records)


def test_an_error_that_no_record_has_caused_is_not_changed(tmp_path):
    write_shards(tmp_path)
    records = opened(tmp_path)
    with pytest.raises(tf.errors.ResourceExhaustedError), naming_bad_records(records, Arrays([], []), use=use):
        epoch_of(records)
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")


def test_more_shards_than_the_limit_of_open_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "_opened", tfrecords.functools.lru_cache(4)(tfrecords.OpenFile))
    written = write_shards(tmp_path, counts=(1,) * 40)
    records = opened(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert [records.record(number) for number in range(40)] == written
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_shard_that_is_a_fifo_is_refused_without_blocking(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "train-00001-of-00003").unlink()
    os.mkfifo(tmp_path / "train-00001-of-00003")
    with pytest.raises(InputError, match="train-00001-of-00003 is not a regular file"):
        opened(tmp_path)


def test_the_parents_of_new_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(folders, "flush_folder", lambda path: flushed.append(Path(path)))
    folders.make_folder(tmp_path / "a" / "b" / "c")
    folders.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    new = [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    # `make_folder` also flushes existing folders, because their creator may have died before it flushed the entry.
    assert flushed == [tmp_path.parent, *new, tmp_path / "a"]
