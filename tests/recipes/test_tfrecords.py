"""TFRecord files are read at any place, with one index, and what is wrong with them is named."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from callbacks import InputError, folders
from callbacks import ranks as callbacks_ranks
from recipes.common.data import Arrays, BadSample, tfrecord_index, tfrecords, training_data
from recipes.common.data.tfrecords import naming_bad_records, open_tfrecords
from recipes.common.distribution import Distribution
from recipes.mnist import build_model

COUNTS = (3, 1, 5)  # records of each shard


def record(number, size=20):
    return f"{number:04d}".encode() + os.urandom(size)


def write_shard(path, records):
    with tf.io.TFRecordWriter(str(path)) as file:
        for each in records:
            file.write(each)


def write_shards(directory, counts=COUNTS, split="train", size=20):
    """Shards of so many records each, which begin with their number; all of them in order."""
    numbers = iter(range(sum(counts)))
    written = [[record(next(numbers), size) for _ in range(count)] for count in counts]
    for shard, records in enumerate(written):
        write_shard(directory / f"{split}-{shard:05d}-of-{len(counts):05d}", records)
    return [each for records in written for each in records]


def use(record):
    """A record of these tests is of no use if it begins with `bad`."""
    tf.debugging.Assert(not tf.strings.regex_full_match(record, "(?s)bad.*"), ["it begins with bad"])


def opened(directory, split="train"):
    return open_tfrecords(str(directory), split, use)


@pytest.fixture
def walked(monkeypatch):
    """The files whose headers were walked through."""
    names = []
    walk = tfrecord_index.record_lengths
    monkeypatch.setattr(tfrecord_index, "record_lengths", lambda path: names.append(Path(path).name) or walk(path))
    return names


@pytest.mark.parametrize("size", [0, 20, 200_000])
def test_a_record_at_any_place_is_what_a_tfrecord_dataset_reads(tmp_path, size):
    """In batches too small for threads, and in larger ones."""
    write_shards(tmp_path, size=size)
    names = sorted(str(path) for path in tmp_path.iterdir())
    expected = [each.numpy() for each in tf.data.TFRecordDataset(names)]
    records = opened(tmp_path)
    assert [records.record(number) for number in range(len(records))] == expected
    for numbers in ([8, 0, 3, 3, 4], range(9), [5]):
        (found,) = records.fetch(tf.constant(list(numbers), tf.int64))
        assert found.numpy().tolist() == [expected[number] for number in numbers]


def test_empty_records_have_their_place_too(tmp_path):
    write_shard(tmp_path / "train-00000-of-00001", [b"", b"one", b"", b""])
    records = opened(tmp_path)
    assert [records.record(number) for number in range(4)] == [b"", b"one", b"", b""]


def test_the_index_is_used_again(tmp_path, walked):
    written = write_shards(tmp_path)
    opened(tmp_path)
    assert len(walked) == 3
    assert opened(tmp_path).record(8) == written[8]
    assert len(walked) == 3


def test_of_the_index_only_what_has_changed_is_made_again(tmp_path, walked):
    write_shards(tmp_path)
    opened(tmp_path)
    changed = [record(100, 50), record(101, 7)]
    write_shard(tmp_path / "train-00001-of-00003", changed)
    walked.clear()
    records = opened(tmp_path)
    assert walked == ["train-00001-of-00003"]
    assert [records.record(number) for number in (3, 4)] == changed and len(records) == 10


def test_a_shard_of_the_same_size_that_was_written_later_is_walked_again(tmp_path, walked):
    write_shards(tmp_path)
    opened(tmp_path)
    shard = tmp_path / "train-00000-of-00003"
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    walked.clear()
    opened(tmp_path)
    assert walked == ["train-00000-of-00003"]


@pytest.mark.parametrize("content", [b"", b"no archive", "half"])
def test_a_broken_index_is_made_again(tmp_path, content):
    written = write_shards(tmp_path)
    opened(tmp_path)
    (index,) = tmp_path.glob(".*.npz")
    index.write_bytes(index.read_bytes()[:300] if content == "half" else content)
    assert opened(tmp_path).record(7) == written[7]


@pytest.fixture
def as_user():
    """A folder that anybody may enter, and a way to be nobody, whom permissions bind, where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)

    @contextlib.contextmanager
    def be_nobody():
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(me)

    yield folder, be_nobody
    shutil.rmtree(folder)


def test_the_index_of_a_folder_that_one_may_only_read_is_kept_in_the_users_cache(as_user, monkeypatch, walked):
    folder, be_nobody = as_user
    data, cache = folder / "data", folder / "cache"
    data.mkdir()
    cache.mkdir()
    write_shards(data)
    data.chmod(0o555)
    cache.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with be_nobody():
        opened(data)
        opened(data)
    assert len(walked) == 3
    assert len(list(data.iterdir())) == 3
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".npz"]


def test_without_a_place_for_the_index_training_goes_on(as_user, monkeypatch, capsys):
    folder, be_nobody = as_user
    data = folder / "data"
    data.mkdir()
    written = write_shards(data)
    data.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "none"))
    with be_nobody():
        assert opened(data).record(2) == written[2]
    assert "kept in memory" in capsys.readouterr().out


class OtherRank(callbacks_ranks.Ranks):
    """Rank 1 of 2, which gets what the chief has."""

    rank, size = 1, 2

    def __init__(self, chief_has):
        self.chief_has = iter(chief_has)

    def broadcast(self, value):
        assert value == {}
        return {"value": next(self.chief_has)}


@pytest.fixture
def other_rank():
    before = callbacks_ranks.ranks()
    yield lambda *chief_has: callbacks_ranks.install(OtherRank(chief_has))
    callbacks_ranks.install(before)


def test_other_ranks_get_the_index_from_the_chief_and_write_nothing(tmp_path, walked, other_rank):
    written = write_shards(tmp_path)
    index = tfrecord_index.read_or_make_index(str(tmp_path), "train")
    for hidden in tmp_path.glob(".*"):
        hidden.unlink()
    walked.clear()
    other_rank(index, None)
    assert opened(tmp_path).record(8) == written[8]
    assert not walked and len(list(tmp_path.iterdir())) == 3


def test_a_rank_that_sees_other_files_than_the_chief_is_refused(tmp_path, other_rank):
    write_shards(tmp_path)
    index = tfrecord_index.read_or_make_index(str(tmp_path), "train")
    write_shard(tmp_path / "train-00001-of-00003", [b"another"])
    other_rank(index, None)
    with pytest.raises(InputError, match=r"train-00001-of-00003 has 40 bytes on the chief, and rank 1 sees 23 bytes"):
        opened(tmp_path)


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


def test_a_folder_that_is_none_or_has_no_shards_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no such file"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read: .*No such file"):
        opened(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be read: .*Not a directory"):
        opened(tmp_path / "file")


SINGLE = Distribution("single", ("/cpu:0",))


def epoch_of(source, distribution=SINGLE, prepare=None, global_batch_size=4, begin=0):
    """The global batches that one epoch gives, each the concatenation of the replicas' shares."""
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


def test_a_record_whose_bytes_have_changed_is_named_when_it_cannot_be_used(tmp_path):
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


def test_a_shard_that_becomes_shorter_while_training_is_named(tmp_path):
    write_shards(tmp_path)
    records = opened(tmp_path)
    cut(tmp_path / "train-00002-of-00003", 100)
    with (
        pytest.raises(BadSample, match=r"train-00002-of-00003, record [234] .*has become shorter"),
        naming_bad_records(records, use=use),
    ):
        epoch_of(records)


def test_an_error_that_no_record_is_the_cause_of_stays_what_it_was(tmp_path):
    write_shards(tmp_path)
    records = opened(tmp_path)
    with pytest.raises(tf.errors.ResourceExhaustedError), naming_bad_records(records, Arrays([], []), use=use):
        epoch_of(records)
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")


def test_more_shards_than_files_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "_opened", tfrecords.functools.lru_cache(4)(tfrecords.OpenFile))
    written = write_shards(tmp_path, counts=(1,) * 40)
    records = opened(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert [records.record(number) for number in range(40)] == written
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_an_index_whose_lengths_do_not_fit_the_files_is_made_again(tmp_path, walked):
    written = write_shards(tmp_path)
    opened(tmp_path)
    (path,) = tmp_path.glob(".*.npz")
    with np.load(path) as index:
        parts = dict(index)
    parts["lengths"][-1] += 1
    np.savez(path, **parts)
    walked.clear()
    assert opened(tmp_path).record(8) == written[8]
    assert walked == ["train-00002-of-00003"]


def test_a_shard_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "train-00001-of-00003").unlink()
    os.mkfifo(tmp_path / "train-00001-of-00003")
    with pytest.raises(InputError, match="train-00001-of-00003 is not a regular file"):
        opened(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_on_a_full_disk_no_half_of_an_index_stays(tmp_path, monkeypatch, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk / "cache"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        written = write_shards(disk, size=2000)
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        before = {path.name for path in disk.iterdir()}
        assert opened(disk).record(8) == written[8]
        assert {path.name for path in disk.rglob("*") if path.is_file()} == before
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    assert "kept in memory" in capsys.readouterr().out


def test_the_parents_of_new_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(folders, "flush_folder", lambda path: flushed.append(Path(path)))
    folders.make_folder(tmp_path / "a" / "b" / "c")
    folders.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    new = [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    # `make_folder` looks at what is there already, too: whoever made it may have died before its entry was flushed.
    assert flushed == [tmp_path.parent, *new, tmp_path / "a"]
