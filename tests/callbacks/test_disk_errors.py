"""No disk error is lost, whichever call of a save fails: every visible file contains the state in its name.

`io_errors.c` makes chosen calls fail in a training process, which is told fault after fault (`io_errors_run.py`). What files
have to hold is what a run without faults holds at that batch.
"""

import errno
import os
import random
import shutil
import subprocess
import threading
import time

import pytest
from faulty_disk import all_names, assert_true, begin
from small import names

from callbacks.disk import files

SHORT, LOST, SLOW = -1, -2, -3  # a call that transfers one byte; a write that never reaches the disk; a slow flush


def attempt(trainer, tmp_path, call, error, first, step=0, of_directory=False):
    """Trains in a new directory while calls of the save of batch 4 fail. Returns the answer of the process, and the files."""
    directory = begin(trainer, tmp_path / "run")
    path = {"rename": f"{directory}/{trainer.name(4)}"}.get(call, f"{directory}/.tmp-*@{trainer.name(4)}")
    answer = trainer.train(directory, f"{call},{error},{directory if of_directory else path},{first},{step}")
    found = names(directory)
    assert_true(directory, trainer)
    assert not list(directory.glob(".tmp-*"))
    shutil.rmtree(directory)
    return answer, found, directory


def indexes(trainer, tmp_path, call, error, of_directory=False):
    """Yields attempts in which the first call fails, then the second, until the save makes no more calls."""
    first = 1
    while True:
        answer, found, directory = attempt(trainer, tmp_path, call, error, first, of_directory=of_directory)
        if answer["seen"] < first:
            assert first > 1, f"a save makes no call of {call}"
            assert (answer["error"], found) == (None, all_names(trainer))
            return
        yield answer, found, directory
        first += 1


CALLS = {"open": 1, "write": 5, "fsync": 1, "read": 2, "close": 1, "rename": 1}  # of a save, at least


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "trainer, error",
    [(".weights.h5", each) for each in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EROFS)]
    + [(".keras", errno.EIO)],
    indirect=["trainer"],
    ids=lambda value: errno.errorcode.get(value, value),
    scope="module",  # of the trainer
)
def test_an_error_of_any_call_of_a_save_ends_training_and_leaves_no_visible_file(trainer, tmp_path, call, error):
    attempts = list(indexes(trainer, tmp_path, call, error))
    assert len(attempts) >= CALLS[call]
    for answer, found, directory in attempts:
        assert answer["type"] == "CheckpointWriteError", answer
        assert answer["error"].startswith(f"Could not write the checkpoint {directory}/{trainer.name(4)}: {os.strerror(error)}.")
        assert "\n" not in answer["error"]
        assert found == [trainer.name(2)]


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_an_error_when_the_name_is_flushed_ends_training_and_the_file_is_right(trainer, tmp_path, call):
    """The rename has succeeded: the file exists, but may be lost when the machine crashes."""
    failed = 0
    for answer, found, directory in indexes(trainer, tmp_path, call, errno.EIO, of_directory=True):
        if answer["error"] is None:
            assert call == "open" and found == all_names(trainer)  # `tempfile` tries to open the directory, and does without
            continue
        assert answer["type"] == "CheckpointWriteError" and os.strerror(errno.EIO) in answer["error"], answer
        assert f"{directory}/{found[-1]}" in answer["error"] and "\n" not in answer["error"]
        assert found == all_names(trainer)[: len(found)] and len(found) > 1
        failed += 1
    assert failed == 3  # saves


@pytest.mark.parametrize("call", ["write", "read"])
def test_a_call_that_transfers_only_a_part_is_continued(trainer, tmp_path, call):
    """Every second call transfers only one byte, and the next call the rest."""
    answer, found, _ = attempt(trainer, tmp_path, call, SHORT, 1, step=2)
    assert answer["seen"] >= 2 * CALLS[call]
    assert (answer["error"], found) == (None, all_names(trainer))


@pytest.mark.parametrize("call", ["open", "write", "fsync", "read"])
def test_a_call_that_a_signal_interrupts_is_made_again(trainer, tmp_path, call):
    """Every second call is interrupted, and then repeated."""
    answer, found, _ = attempt(trainer, tmp_path, call, errno.EINTR, 1, step=2)
    assert answer["seen"] >= 2 * CALLS[call]
    assert (answer["error"], found) == (None, all_names(trainer))


@pytest.mark.parametrize("call", ["close", "rename"])
def test_a_save_survives_a_signal_that_interrupts_its_close_or_rename(trainer, tmp_path, call):
    for answer, found, _ in indexes(trainer, tmp_path, call, errno.EINTR):
        assert (answer["error"], found) == (None, all_names(trainer))


def test_a_rename_that_completes_despite_a_signal_is_noticed(tmp_path, monkeypatch):
    rename = os.replace

    def interrupted(*paths):
        rename(*paths)
        raise InterruptedError

    monkeypatch.setattr(os, "replace", interrupted)
    path = tmp_path / "b1.weights.h5"
    files.commit(str(path), files.Trailer(1, 1, 1, 4), lambda output: output.write(bytes(1000)))
    assert files.verify(str(path)).batch == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_flush_that_takes_long_is_waited_for(trainer, tmp_path):
    answer, found, _ = attempt(trainer, tmp_path, "fsync", SLOW, 1, step=1)
    assert answer["seen"] > 0
    assert (answer["error"], found) == (None, all_names(trainer))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [".weights.h5"], indirect=True)
@pytest.mark.parametrize("call", ["open", "write", "read", "close", "rename"])
def test_an_error_of_any_call_on_the_lock_is_one_line_that_names_it_or_is_harmless(trainer, tmp_path, call):
    first, failed, directory = 1, 0, begin(trainer, tmp_path / "run")
    while True:
        answer = trainer.train(directory, f"{call},{errno.ESTALE},{directory}/.lock-*,{first},0")
        assert_true(directory, trainer)
        assert not list(directory.glob(".tmp-*")) and len(list(directory.glob(".lock-*"))) <= 1
        if answer["seen"] < first:
            break
        if answer["error"] is not None:
            assert answer["type"] in ("InputError", "CheckpointWriteError"), answer
            assert f"{directory}/.lock-" in answer["error"] and os.strerror(errno.ESTALE) in answer["error"]
            assert "\n" not in answer["error"]
            failed += 1
        for name in set(names(directory)) - {trainer.name(2)}:
            (directory / name).unlink()
        first += 1
    assert failed > 0 and answer["error"] is None
    assert not list(directory.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "read"])
def test_every_call_may_transfer_a_single_byte(trainer, tmp_path, call):
    answer, found, _ = attempt(trainer, tmp_path, call, SHORT, 1, step=1)
    assert answer["seen"] > 500_000
    assert (answer["error"], found) == (None, all_names(trainer))


@pytest.mark.parametrize("trainer", [".weights.h5", pytest.param(".keras", marks=pytest.mark.slow)], indirect=True)
def test_a_write_that_a_disk_silently_loses_is_detected_before_the_file_is_visible(trainer, tmp_path):
    attempts = list(indexes(trainer, tmp_path, "write", LOST))
    assert len(attempts) >= CALLS["write"]
    assert all("the file differs from the data that was written" in answer["error"] for answer, _, _ in attempts[:-1])
    for answer, found, directory in attempts:  # without the last one, the file ends early
        assert answer["type"] == "CheckpointWriteError", answer
        assert answer["error"].startswith(f"Could not write the checkpoint {directory}/{trainer.name(4)}: ")
        assert found == [trainer.name(2)]


def test_a_file_that_ends_early_when_it_is_read_back_is_named_as_the_cause(tmp_path):
    """The file that remains if a disk silently loses the last write."""

    def write(output):
        output.write(bytes(1000))
        os.ftruncate(output._descriptor, 10)
        os.lseek(output._descriptor, 0, os.SEEK_SET)

    with pytest.raises(OSError, match="differs from the data"):
        files.commit(str(tmp_path / "b1.weights.h5"), files.Trailer(1, 1, 1, 4), write)


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["background", "at once"])
def test_training_resumes_after_each_error_and_ends_as_without_any(trainer, tmp_path, background):
    """In one directory, one call of each kind fails in one run after the other."""
    directory, failed = begin(trainer, tmp_path / "run"), 0
    for call in CALLS:
        answer = trainer.train(directory, f"{call},{errno.EIO},{directory}/*b0[468].*,1,0", background=background)
        assert answer["error"] is None or answer["type"] == "CheckpointWriteError", answer
        failed += answer["error"] is not None
    assert failed > 3
    answer = trainer.train(directory, background=background)
    assert answer["error"] is None
    assert names(directory) == all_names(trainer)
    assert_true(directory, trainer)


@pytest.fixture(params=["tmpfs", pytest.param("ext4", marks=pytest.mark.slow)])
def small_disk(request, tmp_path):
    """A file system with room for five checkpoints."""
    directory, image = tmp_path / "disk", tmp_path / "image"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3000k", "tmpfs", directory]
    if request.param == "ext4":
        with open(image, "wb") as file:
            file.truncate(5 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-N", "64", image], check=True)
        command = ["mount", "-o", "loop", image, directory]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(directory / "lost+found", ignore_errors=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


class Neighbour(threading.Thread):
    """Fills a disk and frees it, at least a hundred times, until it is stopped."""

    TIMES = 100

    def __init__(self, directory):
        super().__init__()
        self.path, self.pause, self.choose, self.times = directory / ".neighbour", threading.Lock(), random.Random(0), 0
        self.enough = threading.Event()

    def run(self):
        while self.times < self.TIMES or not self.enough.is_set():
            with self.pause:
                with open(self.path, "wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(1 << 14))
                    except OSError as error:
                        self.times += error.errno == errno.ENOSPC
                time.sleep(self.choose.random() * 0.004)
                self.path.unlink()
            time.sleep(self.choose.random() * 0.06)


def test_a_process_that_repeatedly_fills_the_disk_causes_no_corrupt_file(trainer, small_disk):
    begin(trainer, small_disk)
    neighbour = Neighbour(small_disk)
    neighbour.start()
    runs, failures, seen = 0, 0, set()
    try:
        while neighbour.is_alive():
            answer = trainer.train(small_disk, batches=40, keep_last=2)
            runs += 1
            with neighbour.pause:
                assert_true(small_disk, trainer)
                assert names(small_disk) and not list(small_disk.glob(".tmp-*"))
                seen |= set(names(small_disk))
                if answer["error"] is None:
                    for name in names(small_disk):
                        (small_disk / name).unlink()
                    begin(trainer, small_disk)
                else:
                    failures += 1
                    assert answer["type"] in ("CheckpointWriteError", "InputError"), answer
                    assert os.strerror(errno.ENOSPC) in answer["error"] and str(small_disk) in answer["error"]
                    assert "\n" not in answer["error"]
            if failures > 3 and len(seen) > 3:
                neighbour.enough.set()
        print(f"{runs} runs, {failures} of them ended by the full disk, {len(seen)} names seen")
    finally:
        neighbour.TIMES = 0
        neighbour.enough.set()
        neighbour.join()
