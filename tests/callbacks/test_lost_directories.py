"""A directory that is deleted, moved or unmounted during a run is not created again, and the loss is reported in one line."""

import os
import shutil
import subprocess
import sys
import time
import warnings

import pytest
from processes import PROGRAM_ENVIRONMENT, PROGRAMS, run_program
from small import Do, fit, names, small_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import CheckpointWriteError, EventWriteError, GlobalStepCheckpoint, GlobalStepTensorBoard, InputError
from callbacks.curves import event_files
from callbacks.curves.event_files import EventFile


def delete(directory):
    shutil.rmtree(directory)


def move(directory):
    os.rename(directory, f"{directory}-moved")


def replace(directory):
    os.rename(directory, f"{directory}-moved")
    os.mkdir(directory)  # an empty mount point remains when its disk is gone


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("lose", [delete, move, replace])
def test_a_save_into_a_lost_directory_fails_with_its_name_and_makes_nothing(tmp_path, lose, background):
    directory = tmp_path / "run"
    checkpoint = GlobalStepCheckpoint(directory / "b{batch}.weights.h5", save_freq=2, background=background)

    def lose_it():
        checkpoint._writer.finish()
        lose(directory)

    with pytest.raises(CheckpointWriteError) as raised:
        fit(small_model(), checkpoint, Do(5, lose_it))
    said = str(raised.value)
    assert said.startswith(
        f"Could not write the checkpoint {directory}/b6.weights.h5: the directory {directory} was deleted, moved or unmounted"
    )
    assert "\n" not in said and "intact" not in said
    assert list(directory.iterdir()) == [] if lose is replace else not directory.exists()
    if lose is not delete:
        assert names(tmp_path / "run-moved") == ["b2.weights.h5", "b4.weights.h5"]


def test_a_lost_parent_directory_is_not_created_again(tmp_path):
    directory = tmp_path / "run"
    checkpoint = GlobalStepCheckpoint(directory / "s{samples}" / "b{batch}.weights.h5", save_freq=2, background=False)
    with pytest.raises(CheckpointWriteError, match=f"the directory {directory} was deleted, moved or unmounted"):
        fit(small_model(), checkpoint, Do(3, lambda: delete(directory)))
    assert not directory.exists()


def test_a_directory_that_is_a_link_is_written_to_until_it_leads_elsewhere(tmp_path):
    run, elsewhere, link = tmp_path / "run", tmp_path / "elsewhere", tmp_path / "link"
    run.mkdir()
    elsewhere.mkdir()
    link.symlink_to(run)
    checkpoint = GlobalStepCheckpoint(link / "b{batch}.weights.h5", save_freq=2, keep_last=2)

    def lead_elsewhere():
        checkpoint._writer.finish()
        link.unlink()
        link.symlink_to(elsewhere)

    with pytest.raises(CheckpointWriteError, match=f"b6.weights.h5: the directory {link} was deleted, moved or unmounted"):
        fit(small_model(), checkpoint, Do(5, lead_elsewhere))
    assert names(run) == ["b2.weights.h5", "b4.weights.h5"]
    assert list(elsewhere.iterdir()) == []


def test_a_disk_that_becomes_read_only_ends_training_with_its_name_and_keeps_what_was_saved(tmp_path):
    def mount(*options):
        return subprocess.run(["mount", *options, "tmpfs", tmp_path], capture_output=True, text=True)

    if mount("-t", "tmpfs").returncode:
        pytest.skip("no file system can be mounted here")
    try:
        first = GlobalStepCheckpoint(tmp_path / "b{batch:02d}.weights.h5", save_freq=2)

        def make_read_only():
            first._writer.finish()
            assert mount("-o", "remount,ro").returncode == 0

        with pytest.raises(CheckpointWriteError) as raised:
            fit(small_model(), first, Do(5, make_read_only))
        said = f"Could not write the checkpoint {tmp_path}/b06.weights.h5: Read-only file system."
        assert str(raised.value) == f"{said} The checkpoints before it are intact."
        mount("-o", "remount,rw")
        second = GlobalStepCheckpoint(tmp_path / "b{batch:02d}.weights.h5", save_freq=2, resume=True)
        fit(small_model(), second)
        assert second.resumed_from.batch == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"b{batch:02d}.weights.h5" for batch in (2, 4, 6, 8, 10)]
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("jump", [-3600, pytest.param(3600, marks=pytest.mark.slow)])
def test_a_clock_jump_of_an_hour_does_not_affect_saves_or_the_run(tmp_path, monkeypatch, jump):
    clock = time.time
    steady, jumping = tmp_path / "steady", tmp_path / "jumping"
    for directory in (steady, jumping):
        callbacks = [
            GlobalStepCheckpoint(directory / "b{batch:02d}.weights.h5", save_freq=3, save_secs=600, keep_last=2),
            GlobalStepTensorBoard(tmp_path / f"{directory.name}-events", update_freq=1, write_graph=False),
        ]
        act = (lambda: monkeypatch.setattr(time, "time", lambda: clock() + jump)) if directory is jumping else (lambda: None)
        fit(small_model(), *callbacks, Do(5, act))
    assert names(jumping) == names(steady) == ["b09.weights.h5", "b10.weights.h5"]
    assert not list(jumping.glob(".*"))
    reader = EventAccumulator(str(tmp_path / "jumping-events" / "batches"), {"scalars": 0}).Reload()
    assert [event.step for event in reader.Scalars("batch_loss")] == list(range(1, 11))


@pytest.mark.slow
def test_a_disk_that_is_unmounted_leaves_nothing_on_the_disk_below(tmp_path):
    command = ["unshare", "--mount", sys.executable, PROGRAMS / "unmounted_run.py", tmp_path]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    done = subprocess.run(command, capture_output=True, text=True, env=PROGRAM_ENVIRONMENT)
    assert done.returncode == 1
    assert f"CheckpointWriteError: Could not write the checkpoint {tmp_path}/run/b6.weights.h5" in done.stderr, done.stderr
    assert done.stderr.rstrip().splitlines()[-1].count("was deleted, moved or unmounted while training ran") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lose", [delete, move])
def test_lost_curves_are_reported_once_and_training_continues(tmp_path, lose):
    events = tmp_path / "events"
    board = GlobalStepTensorBoard(events, update_freq=2, write_graph=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = small_model()
        fit(model, board, Do(5, lambda: lose(events)), epochs=2)
    said = [str(each.message) for each in caught if "lost" in str(each.message)]
    assert sorted(each.split(" ")[3] for each in said) == [f"{events}/batches", f"{events}/train"]
    assert all("\n" not in each and "was deleted, moved or unmounted" in each for each in said)
    assert int(model.optimizer.iterations.numpy()) == 20
    assert not events.exists()


def test_a_profile_does_not_recreate_a_lost_directory(tmp_path):
    events = tmp_path / "events"
    board = GlobalStepTensorBoard(events, update_freq=100, write_graph=False, profile_batch=(4, 6))
    with pytest.warns(UserWarning, match="curves .* are lost"):
        fit(small_model(), board, Do(5, lambda: delete(events)))
    assert not events.exists()


@pytest.mark.slow
def test_a_failed_write_of_events_during_a_run_is_a_failure_and_not_bad_input(tmp_path):
    flags = ["--model", "mlp", "--epochs", "2", "--workdir", str(tmp_path)]
    done = run_program("full_events_run.py", *flags)
    assert done.returncode == 1, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith(f"error: TensorBoard's events cannot be written to {tmp_path}/tensorboard/batches: ")
    assert "Traceback" not in done.stderr


def test_a_directory_of_events_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"events cannot be written to {tmp_path}/file/batches"):
        fit(small_model(), GlobalStepTensorBoard(tmp_path / "file", write_graph=False))
    assert not issubclass(EventWriteError, InputError)


def test_after_an_event_file_that_is_ahead_of_the_clock_the_next_one_still_sorts_last(tmp_path):
    describe = str
    ahead = int(time.time()) + 86400
    (tmp_path / f"events.out.tfevents.{ahead}.zzz.1.x").touch()
    for i in range(3):
        EventFile(str(tmp_path), describe).scalars(i, time.time(), {"loss": float(i)})
    written = sorted(path.name for path in tmp_path.iterdir())[1:]
    assert [int(name.split(".")[3]) for name in written] == [ahead + 1, ahead + 2, ahead + 3]
    reader = EventAccumulator(str(tmp_path), {"scalars": 0}).Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("resume", ["", None, 3])
def test_an_invalid_resume_path_is_refused_in_one_line(resume):
    with pytest.raises(InputError, match=r"^resume must be True, False, or the path of a checkpoint. Received: .*$") as raised:
        GlobalStepCheckpoint("b{batch}.weights.h5", resume=resume)
    assert repr(resume) in str(raised.value)


def test_a_fifo_among_the_event_files_is_skipped(tmp_path):
    os.mkfifo(tmp_path / "events.out.tfevents.\u00b2.host.1.x")
    file = EventFile(str(tmp_path), str)
    file.scalars(3, time.time(), {"loss": 1.0})
    assert event_files.steps(str(tmp_path)) == {3}
    assert event_files.attempts(str(tmp_path)) == {}
