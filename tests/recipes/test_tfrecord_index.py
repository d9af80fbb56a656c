"""The index of TFRecord files: created once, updated for changed files, and shared by all ranks."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from shards import opened, record, write_shard, write_shards

from callbacks import InputError
from callbacks import ranks as callbacks_ranks
from recipes.common.data import tfrecord_index


@pytest.fixture
def walked(monkeypatch):
    """Records the files whose headers were read."""
    names = []
    walk = tfrecord_index.record_lengths
    monkeypatch.setattr(tfrecord_index, "record_lengths", lambda path: names.append(Path(path).name) or walk(path))
    return names


def test_the_index_is_reused(tmp_path, walked):
    written = write_shards(tmp_path)
    opened(tmp_path)
    assert len(walked) == 3
    assert opened(tmp_path).record(8) == written[8]
    assert len(walked) == 3


def test_only_changed_shards_are_indexed_again(tmp_path, walked):
    write_shards(tmp_path)
    opened(tmp_path)
    changed = [record(100, 50), record(101, 7)]
    write_shard(tmp_path / "train-00001-of-00003", changed)
    walked.clear()
    records = opened(tmp_path)
    assert walked == ["train-00001-of-00003"]
    assert [records.record(number) for number in (3, 4)] == changed and len(records) == 10


def test_a_newer_shard_of_the_same_size_is_indexed_again(tmp_path, walked):
    write_shards(tmp_path)
    opened(tmp_path)
    shard = tmp_path / "train-00000-of-00003"
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    walked.clear()
    opened(tmp_path)
    assert walked == ["train-00000-of-00003"]


@pytest.mark.parametrize("content", [b"", b"no archive", "half"])
def test_a_corrupt_index_is_rebuilt(tmp_path, content):
    written = write_shards(tmp_path)
    opened(tmp_path)
    (index,) = tmp_path.glob(".*.npz")
    index.write_bytes(index.read_bytes()[:300] if content == "half" else content)
    assert opened(tmp_path).record(7) == written[7]


@pytest.fixture
def as_user():
    """A folder that any user may enter, and a way to become the user nobody, because permissions do not restrict root."""
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


def test_the_index_of_a_read_only_folder_is_stored_in_the_users_cache(as_user, monkeypatch, walked):
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
    assert "stored in memory" in capsys.readouterr().out


class OtherRank(callbacks_ranks.Ranks):
    """Rank 1 of 2, which receives the chief's data."""

    rank, size = 1, 2

    def __init__(self, chief_has):
        self.chief_has = iter(chief_has)

    def broadcast(self, value):
        assert value == {}
        return {"value": next(self.chief_has)}


@pytest.fixture
def other_rank():
    return lambda *chief_has: callbacks_ranks.install(OtherRank(chief_has))


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


def test_an_index_that_does_not_match_the_files_is_rebuilt(tmp_path, walked):
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


def test_a_compressed_index_is_not_read(tmp_path, walked):
    """A few bytes could become any number."""
    written = write_shards(tmp_path)
    opened(tmp_path)
    (path,) = tmp_path.glob(".*.npz")
    with np.load(path) as index:
        np.savez_compressed(path, **index)
    walked.clear()
    assert opened(tmp_path).record(8) == written[8]
    assert len(walked) == 3


def test_lengths_whose_sum_overflows_are_not_those_of_a_file():
    assert tfrecord_index._fits(np.array([100]), 116)
    assert not tfrecord_index._fits(np.array([(1 << 62), (1 << 62), (1 << 62), (1 << 62) + 36]), 100)
    assert not tfrecord_index._fits(np.array([-100, 200]), 132)


def test_what_a_power_cut_left_of_an_index_is_removed(tmp_path):
    """A file that another process writes now stays, and a link is not written through."""
    write_shards(tmp_path)
    place = tmp_path / ".train-of-00003.index.npz"
    old, new, link = (place.with_name(f"{place.name}.{pid}") for pid in (1, 2, os.getpid()))
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (0, 0))
    victim = tmp_path / "victim"
    link.symlink_to(victim)
    opened(tmp_path)
    assert place.exists() and not old.exists() and new.exists()
    assert not link.is_symlink() and not victim.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_leaves_no_partial_index(tmp_path, monkeypatch, capsys):
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
    assert "stored in memory" in capsys.readouterr().out
