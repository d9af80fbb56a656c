"""The output of a checkpoint: flushing begins early, and no disk error is lost."""

import errno
import os
import threading

import pytest

from callbacks.disk import files
from callbacks.disk.files import Output, Trailer

MEGABYTE = bytes(1 << 20)
TRAILER = Trailer(1, 1, 1, 4)


@pytest.fixture
def small_flushes(monkeypatch):
    """Flushes after each MB, not after each 128 MB."""
    monkeypatch.setattr(Output, "_FLUSHED_AT_ONCE", 1 << 20)


def write_three(output):
    for _ in range(3):
        output.write(MEGABYTE)


def test_flushing_begins_while_the_rest_is_written(tmp_path, monkeypatch, small_flushes):
    began = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: began.set())

    def write(output):
        output.write(MEGABYTE)
        assert began.wait(300)
        output.write(MEGABYTE)

    files.commit(str(tmp_path / "a.weights.h5"), TRAILER, write)
    files.verify(str(tmp_path / "a.weights.h5"))


def test_an_error_of_an_early_flush_ends_the_save_though_the_last_flush_succeeds(tmp_path, monkeypatch, small_flushes):
    """The system reports a failed write once; the next fsync of the same file succeeds."""
    errors = [OSError(errno.EIO, "Input/output error")]

    def fdatasync(descriptor):
        if errors:
            raise errors.pop()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match="Input/output error"):
        files.commit(str(tmp_path / "a.weights.h5"), TRAILER, write_three)
    assert list(tmp_path.iterdir()) == []


def test_no_flush_outlives_a_failed_save(tmp_path, monkeypatch, small_flushes):
    began, may_end, ended = threading.Event(), threading.Event(), []

    def fdatasync(descriptor):
        began.set()
        assert may_end.wait(300)
        ended.append(descriptor)

    def write(output):
        output.write(MEGABYTE)
        assert began.wait(300)
        threading.Timer(0.1, may_end.set).start()
        raise InterruptedError

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(InterruptedError):
        files.commit(str(tmp_path / "a.weights.h5"), TRAILER, write)
    assert len(ended) == 1  # before the descriptor was closed and could be reused
