"""A disk that fails while a checkpoint is read ends the run with one line, before any value is assigned.

Each read of the file fails once: those that find and verify the file, and those after that, whose errors HDF5 and `zipfile` turn
into others or into missing groups.
"""

import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from faulty_disk import all_names, assert_true, begin
from hostile import put_hdf5
from processes import fork_program, run_program
from small import fit, names, small_model

from callbacks import CheckpointReadError, GlobalStepCheckpoint, InputError, latest_checkpoint, restore
from callbacks.resuming.restoring import named_checkpoint, restore_weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error", "others"), [("read", errno.EIO, []), ("read", errno.ESTALE, [4]), ("open", errno.EIO, [])]
)
def test_a_resume_survives_an_error_of_any_read_or_ends_before_it_changes_the_model(trainer, tmp_path, call, error, others):
    first, failed = 1, 0
    while True:
        directory = begin(trainer, tmp_path / "run")
        for batch in others:
            shutil.copy(trainer.whole / trainer.name(batch), directory)
        path = directory / names(directory)[-1]
        before = names(directory)
        answer = trainer.train(directory, f"{call},{error},{path},{first},0")
        assert_true(directory, trainer)
        assert not list(directory.glob(".tmp-*"))
        if answer["error"] is None:
            assert answer["from"] in ((2, 4) if others else (2,)), answer
            assert names(directory) == all_names(trainer)
        else:
            assert answer["type"] == "CheckpointReadError" and not answer["changed"], answer
            assert answer["error"].startswith(f"Could not read the checkpoint {path}: {os.strerror(error)}."), answer
            assert "\n" not in answer["error"]
            assert names(directory) == before
            failed += 1
        shutil.rmtree(directory)
        if answer["seen"] < first:
            break
        first += 1
    assert failed > 2 and answer["error"] is None and first > 5


class Disk:
    """Makes one read of a file fail, or one and all later ones."""

    def __init__(self, monkeypatch, path):
        self._path, self._real = os.path.realpath(path), os.preadv
        self.first, self.seen, self.stays_broken = 0, 0, False
        monkeypatch.setattr(os, "preadv", self._preadv)

    def fail_from(self, first, stays_broken):
        self.first, self.seen, self.stays_broken = first, 0, stays_broken

    def _preadv(self, descriptor, *rest):
        if os.readlink(f"/proc/self/fd/{descriptor}") == self._path:
            self.seen += 1
            if self.seen == self.first or (self.stays_broken and self.seen > self.first > 0):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._real(descriptor, *rest)


@pytest.mark.parametrize("stays_broken", [False, True])
@pytest.mark.parametrize("read", [restore, restore_weights])
def test_an_error_of_any_read_leaves_the_model_as_it_was(trained, monkeypatch, read, stays_broken):
    path = max(trained.iterdir(), key=lambda path: len(path.name))
    model, disk, right = small_model(), Disk(monkeypatch, path), small_model()
    model.optimizer.build(model.trainable_variables)
    read(right, path)
    fresh, first, failed = [v.numpy() for v in model.variables], 1, 0
    while True:
        disk.fail_from(first, stays_broken)
        try:
            read(model, path)
        except CheckpointReadError as error:
            assert str(error).startswith(f"Could not read the checkpoint {path}: {os.strerror(errno.ESTALE)}.")
            assert "\n" not in str(error)
            for variable, value in zip(model.variables, fresh, strict=True):
                np.testing.assert_array_equal(variable, value)
            failed += 1
        else:
            assert disk.seen < first
            break
        first += 1
    assert failed > 5
    for variable, expected in zip(model.weights, right.weights, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_a_disk_that_fails_does_not_hide_that_a_file_is_not_finite_or_of_another_template(tmp_path, monkeypatch):
    """The read of the header fails and the rest succeeds: the file is skipped, and not used unseen."""
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=5)
    fit(small_model(), checkpoint)
    disk = Disk(monkeypatch, tmp_path / "b10.weights.h5")
    latest_checkpoint(tmp_path / "b{batch}.weights.h5")
    for first in range(1, disk.seen + 1):
        disk.fail_from(first, stays_broken=False)
        with pytest.warns(UserWarning, match=r"Skipped .*b10\.weights\.h5: .*Stale file handle"):
            assert latest_checkpoint(tmp_path / "b{batch}.weights.h5").batch == 5


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_directory_that_cannot_be_listed_does_not_look_empty(copies, monkeypatch, error):
    """`glob` finds nothing in such a directory, and a run would begin again and replace what it does not see."""
    (directory, older, _), listdir = copies, os.listdir

    def fail(path="."):
        if os.path.realpath(path) == str(directory):
            raise OSError(error, os.strerror(error), str(path))
        return listdir(path)

    suffix = older.name.partition(".")[2]
    template = f"{directory}/b{{batch}}.{suffix}"
    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "scandir", fail)
    wanted = CheckpointReadError if error == errno.EIO else InputError
    for where in (template, directory):
        with pytest.raises(wanted, match=f"{re.escape(str(directory))}/?: {os.strerror(error)}"):
            latest_checkpoint(where)
    with pytest.raises(wanted, match=os.strerror(error)):
        fit(small_model(), GlobalStepCheckpoint(template, resume=True))


def test_a_named_file_that_the_disk_cannot_read_is_a_failure_and_a_wrong_path_is_bad_input(trained, tmp_path, monkeypatch):
    path = min(trained.iterdir())
    Disk(monkeypatch, path).fail_from(1, stays_broken=True)
    with pytest.raises(CheckpointReadError, match=f"Could not read the checkpoint {path}: Stale file handle"):
        named_checkpoint(str(path))
    with pytest.raises(InputError, match=r"Cannot resume from .*No such file"):
        named_checkpoint(str(tmp_path / path.name))


def test_a_process_that_ends_with_the_error_does_not_crash(trained, tmp_path):
    """At the exit, HDF5 would call the file-like object of a file that it could not open. With 0, only the content is bad."""
    intact = max(trained.iterdir())
    bad = Path(shutil.copy(intact, tmp_path))
    put_hdf5(bad, b"\x89HDF\r\n\x1a\n" + bytes(4000))
    cases = [(intact if first else bad, first, tmp_path / f"errors-{first}") for first in range(6)]
    done = run_program("unreadable_checkpoint.py", *(word for case in cases for word in case))
    assert done.stdout == f"{[1] * len(cases)}\n", done.stderr
    for path, first, errors in cases:
        said = "CheckpointReadError: Could not read the checkpoint" if first else "InputError: Cannot resume from"
        assert f"{said} {path}: " in errors.read_text().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--workdir", "run"], ["--workdir", "new", "--init-from", "run"]], ids=["resume", "init-from"])
def test_a_recipe_whose_disk_fails_after_the_file_was_verified_fails_in_one_line(recipe, tmp_path, flags):
    model = ["--model", "mlp", "--epochs", "1"]
    assert recipe(*model, "--workdir", tmp_path / "run").finish()[0] == 0
    done = fork_program("failing_disk_run.py", *model, *(flag if flag.startswith("--") else tmp_path / flag for flag in flags))
    assert done.returncode == 1, done.stderr
    assert re.search(r"^error: Could not read the checkpoint \S+: Input/output error\.", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
