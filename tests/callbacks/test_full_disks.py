"""A disk that is full or read-only ends training with one line that names it, and earlier checkpoints stay intact."""

import subprocess

import pytest
from processes import run_program
from small import fit, names, small_model

from callbacks import EventWriteError, GlobalStepTensorBoard
from callbacks.disk import files


def run_on(directory):
    """Runs a training in its own process that saves every batch. Returns its exit code and the last line of stderr."""
    done = run_program("save_each_batch.py", directory / "b{batch}.weights.h5")
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr else ""


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system in memory, with the options of the test."""

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return tmp_path

    yield mount
    subprocess.run(["umount", "--lazy", tmp_path], capture_output=True)  # a writer of this process may have a file open there


@pytest.mark.slow
def test_a_full_disk_ends_training_with_its_name_and_leaves_earlier_checkpoints(mounted):
    directory = mounted("size=120k")
    code, said = run_on(directory)
    visible = names(directory)
    assert code and "CheckpointWriteError: Could not write the checkpoint" in said and "No space left on device" in said, said
    assert visible and all(files.verify(str(directory / name)) for name in visible)
    assert not list(directory.glob(".tmp-*"))


@pytest.mark.slow
def test_a_disk_that_is_full_of_curves_ends_training_with_its_name(mounted):
    directory = mounted("size=64k")
    board = GlobalStepTensorBoard(directory / "events", update_freq=1, write_graph=False)
    with pytest.raises(EventWriteError, match=f"events cannot be written to {directory}/events/batches: .*No space left on device"):
        fit(small_model(), board, epochs=50)


def test_a_directory_that_cannot_be_written_to_is_refused_before_the_first_batch(mounted):
    directory = mounted("ro")
    code, said = run_on(directory)
    assert code and said.endswith(
        f"Checkpoints cannot be written to {directory}: Read-only file system. Give a directory that can be written to."
    ), said
