"""When a checkpoint is due, as lists of saved batches. A policy needs neither training nor time."""

import pytest
from clock import Clock

from callbacks.counts import Counts, next_multiple
from callbacks.saving.save_policy import SavePolicy


def saves(save_freq, save_secs=None, *, begin=0, batches=20, execution=1, seconds=1.0, epoch=10, is_saved=lambda batch: True):
    """Returns the saved batches, if training asks like the callback: at each boundary, and at the end of each epoch."""
    clock = Clock(100.0)
    policy = SavePolicy(save_freq, save_secs, clock=clock)
    policy.begin(begin)
    saved = []

    def save(batch):
        if is_saved(batch):
            saved.append(batch)
            policy.saved(batch)
        else:
            policy.postpone()

    for batch in range(begin + execution, begin + batches + 1, execution):
        clock.now += seconds * execution
        if batch >= policy.next_batch:
            answer = policy.decide(batch, is_writing=False)
            assert answer["is_due"]
            save(batch)
            policy.next_batch = answer["next_batch"]
        elif policy.may_be_due_by_time and policy.is_due_by_time():
            save(batch)
        if batch % epoch == 0 and policy.is_due_after_epoch():
            save(batch)
    return saved


@pytest.mark.parametrize(
    "save_freq, options, batches",
    [
        (5, {}, [5, 10, 15, 20]),
        (5, {"begin": 7}, [10, 15, 20, 25]),
        (5, {"begin": 10}, [15, 20, 25, 30]),
        (50, {"batches": 171, "execution": 8, "epoch": 1000}, [56, 104, 152]),
        (4, {"execution": 10}, [10, 20]),
        (7, {"begin": 3}, [7, 14, 21]),
        (1000, {}, []),
        ("epoch", {}, [10, 20]),
        ("epoch", {"epoch": 7}, [7, 14]),
    ],
)
def test_batches_and_epochs(save_freq, options, batches):
    assert saves(save_freq, **options) == batches


@pytest.mark.parametrize(
    "save_freq, save_secs, seconds, batches",
    [
        (1000, 3, 1, [3, 6, 9, 12, 15, 18]),
        (1000, 3, 2, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (1000, 30, 1, []),
        (5, 3, 1, [3, 5, 8, 10, 13, 15, 18, 20]),  # seconds count from the last save, whatever made that due
        ("epoch", 4, 1, [4, 8, 10, 14, 18, 20]),
        (5, 0.1, 1, list(range(1, 21))),
    ],
)
def test_seconds(save_freq, save_secs, seconds, batches):
    assert saves(save_freq, save_secs, seconds=seconds) == batches


def test_a_save_that_waits_for_a_validation_is_made_at_the_end_of_the_epoch():
    assert saves(4, is_saved=lambda batch: batch >= 10) == [10, 12, 16, 20]


def test_a_resumed_training_saves_at_the_batches_of_the_uninterrupted_one():
    whole = saves(6, batches=40)
    for begin in range(40):
        assert saves(6, begin=begin, batches=40 - begin) == [batch for batch in whole if batch > begin]


@pytest.mark.parametrize(
    "save_freq, begin, execution", [(3, 0, 1), (6, 7, 1), ("epoch", 0, 1), ("epoch", 13, 1), (7, 0, 5), (8, 10, 2)]
)
def test_planned_checkpoints_are_those_that_become_due_and_the_last_one(save_freq, begin, execution):
    planned = list(SavePolicy(save_freq).planned({"epochs": 2, "steps": 10}, Counts(batch=begin), Counts(), execution))
    due = saves(save_freq, begin=begin, batches=20 - begin, execution=execution)
    assert {counts.batch for counts in planned} == {*due, 20}
    assert all(counts.epoch == (1 if counts.batch <= 10 else 2) for counts in planned)


@pytest.mark.parametrize("params, batch, planned", [
    (None, 0, []),
    ({"epochs": 2, "steps": None}, 0, []),
    ({"epochs": 2, "steps": 10}, 20, []),
    ({"epochs": 2, "steps": 10}, 5, [20]),
])  # fmt: skip
def test_under_auto_and_without_a_known_length_only_the_last_checkpoint_is_planned(params, batch, planned):
    assert [counts.batch for counts in SavePolicy("auto").planned(params, Counts(batch=batch), Counts(), 1)] == planned


@pytest.mark.parametrize("save_freq, planned", [(8, [(32, 4), (40, 5), (43, 5)]), ("epoch", [(33, 4), (43, 5)])])
def test_the_plan_of_a_later_fit_begins_with_its_first_epoch(save_freq, planned):
    """`fit(epochs=5, initial_epoch=3)` of ten batches an epoch, on a model that was trained on 23 batches."""
    plan = SavePolicy(save_freq).planned({"epochs": 5, "steps": 10}, Counts(batch=25), Counts(batch=23, epoch=4), 1)
    assert [(counts.batch, counts.epoch) for counts in plan] == planned


def test_begin_resets_the_policy():
    clock = Clock(100.0)
    policy = SavePolicy(5, 10.0, clock=clock)
    policy.postpone()
    clock.now += 100
    assert policy.is_due_by_time()
    policy.begin(12)
    assert (policy.next_batch, policy.saved_batch) == (15, 12)
    assert not policy.is_due_by_time() and not policy.is_due_after_epoch()


@pytest.mark.parametrize("batch, every, expected", [(0, 5, 5), (4, 5, 5), (5, 5, 10), (6, 1, 7)])
def test_the_next_multiple_is_above(batch, every, expected):
    assert next_multiple(batch, every) == expected
