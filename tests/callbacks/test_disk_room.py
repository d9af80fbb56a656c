"""A warning when a run begins says if the disk has no room for its checkpoints, and how much they need."""

import math
import os
import warnings

import numpy as np
import pytest
from small import BATCHES, arrays, fit, names, small_model

from callbacks import GlobalStepCheckpoint
from callbacks.disk.template import Template
from callbacks.saving import disk_room
from callbacks.saving.disk_room import DiskRoom, in_units, state_size
from callbacks.saving.save_policy import SavePolicy

NONE = {"keep_last": None, "keep_every": None, "keep_best": None}


@pytest.mark.parametrize(
    ("keep", "saves", "files"),
    [
        ({}, 20, 20),
        ({"keep_last": 3}, 20, 4),  # three, and the one that is being written
        ({"keep_last": 3}, 2, 2),
        ({"keep_last": 2, "keep_best": 2}, 20, 5),
        ({"keep_every": 100}, 20, 12),  # ten, the newest, and the one that is being written
        ({"keep_last": 3}, math.inf, 4),
        ({}, math.inf, math.inf),
    ],
)
def test_the_rules_bound_the_number_of_files(keep, saves, files):
    assert DiskRoom(Template("b{batch}.keras"), {**NONE, **keep}, saves, batches=1000).most_files == files


def test_one_file_that_is_replaced_takes_the_room_of_two():
    assert DiskRoom(Template("last.keras"), NONE, saves=100, batches=1000).most_files == 2


@pytest.mark.parametrize(
    ("save_freq", "save_secs", "params", "expected"),
    [
        (50, None, {"epochs": 10, "steps": 22}, (5, 220)),
        (50, None, {"epochs": 10, "steps": None}, (math.inf, math.inf)),
        ("epoch", None, {"epochs": 10, "steps": 22}, (11, 220)),
        ("epoch", None, {"epochs": 10, "steps": None}, (10, math.inf)),
        (50, 60.0, {"epochs": 10, "steps": 22}, (math.inf, 220)),
        (50, None, None, (math.inf, math.inf)),
    ],
)
def test_the_number_of_remaining_files_follows_from_the_planned_epochs(save_freq, save_secs, params, expected):
    assert SavePolicy(save_freq, save_secs).still_to_come(params, 0) == expected


def test_a_run_that_is_further_needs_less_room():
    assert SavePolicy(50).still_to_come({"epochs": 10, "steps": 22}, 200) == (1, 20)


def warned(tmp_path, monkeypatch, room_for, **options):
    """Returns the warnings of a run with ten checkpoints on a disk with room for some, and the size of a checkpoint."""
    model = small_model()
    monkeypatch.setattr(disk_room, "_free", lambda directory: room_for * state_size(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=1, **options))
    return [str(each.message) for each in caught if "free, but" in str(each.message)], state_size(model)


def test_a_disk_without_room_is_reported_in_one_line_with_the_required_size(tmp_path, monkeypatch):
    (said,), size = warned(tmp_path, monkeypatch, room_for=BATCHES)
    assert said.startswith(f"The disk of {tmp_path} has {in_units(BATCHES * size)} free") and "\n" not in said
    assert f"need {in_units((BATCHES + 1) * size)} more: {BATCHES + 1} files of {in_units(size)}." in said
    assert names(tmp_path) == [f"b{batch}.weights.h5" for batch in (1, 10, 2, 3, 4, 5, 6, 7, 8, 9)]  # and training continues


def test_nothing_is_printed_if_there_is_room(tmp_path, monkeypatch):
    assert warned(tmp_path, monkeypatch, room_for=4, keep_last=3)[0] == []
    assert len(warned(tmp_path / "less", monkeypatch, room_for=3, keep_last=3)[0]) == 1


def test_files_that_a_rule_will_delete_count_as_room(tmp_path):
    room = DiskRoom(Template(str(tmp_path / "b{batch}.weights.h5")), {**NONE, "keep_last": 3}, saves=20, batches=1000)
    for batch in (1, 2, 3):
        (tmp_path / f"b{batch}.weights.h5").touch()
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        room.warn(free // 2)  # one more
    with pytest.warns(UserWarning, match="need .* more: 1 files of"):
        room.warn(2 * free)


def test_the_size_is_that_of_the_values_of_a_file(tmp_path):
    model = small_model()
    fit(model, GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5")))
    values = [np.asarray(v) for v in (*model.weights, *model.optimizer.variables, *model.metrics_variables)]
    assert state_size(model) >= sum(value.nbytes for value in values)
    assert state_size(model) < sum(value.nbytes for value in values) + 100


@pytest.mark.parametrize(("size", "text"), [(999, "0.999 kB"), (1.2e6, "1.2 MB"), (1_234_000_000, "1.23 GB"), (5e13, "50 TB")])
def test_sizes_have_readable_units(size, text):
    assert in_units(size) == text


def test_the_next_two_files_must_fit_if_their_number_is_unknown(tmp_path, monkeypatch):
    def endless():
        while True:
            yield tuple(part[:4] for part in arrays())

    monkeypatch.setattr(disk_room, "_free", lambda directory: 1)
    with pytest.warns(UserWarning, match=r"need at least .* more: 2 files of"):
        small_model().fit(
            endless(),
            steps_per_epoch=3,
            verbose=0,
            callbacks=[GlobalStepCheckpoint(str(tmp_path / "b{batch}.keras"), save_secs=1000.0)],
        )
