"""Retention: the rules as lists, and the files that they delete."""

import os
import shutil
import subprocess
from collections import Counter

import keras
import pytest
from clock import Clock
from small import Do, arrays, fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError, latest_checkpoint
from callbacks.disk import files, stored_header
from callbacks.disk.lock import pid_space
from callbacks.disk.template import Template
from callbacks.saving.retention import Kept, to_delete
from callbacks.saving.save_policy import SavePolicy


def survivors(batches, values=None, **rules):
    """Returns the checkpoints that are kept if the rules are applied after every save, as in training."""
    present = []
    for i, batch in enumerate(batches):
        present.append(Kept(f"b{batch}", batch, values[i] if values else None))
        gone = to_delete(present, **rules)
        present = [kept for kept in present if kept.path not in gone]
    return [kept.batch for kept in present]


TEN = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
LOSSES = [9.0, 3.0, 8.0, 1.0, 7.0, 2.0, 6.0, 4.0, 5.0, 9.5]


@pytest.mark.parametrize(
    "rules, stay",
    [
        ({}, TEN),
        ({"keep_last": 1}, [100]),
        ({"keep_last": 3}, [80, 90, 100]),
        ({"keep_last": 20}, TEN),
        ({"keep_every": 50}, [50, 100]),
        ({"keep_every": 25}, [30, 50, 80, 100]),  # the first at or after 25, 50, 75, 100
        ({"keep_every": 1}, TEN),
        ({"keep_every": 1000}, [100]),  # the newest is always kept
        ({"keep_best": 1}, [40, 100]),
        ({"keep_best": 3}, [20, 40, 60, 100]),
        ({"keep_best": 2, "lower_is_better": False}, [10, 100]),
        ({"keep_last": 2, "keep_every": 40}, [40, 80, 90, 100]),
        ({"keep_last": 2, "keep_best": 1}, [40, 90, 100]),
        ({"keep_last": 1, "keep_every": 30, "keep_best": 2}, [30, 40, 60, 90, 100]),
    ],
)
def test_a_checkpoint_stays_if_any_rule_keeps_it(rules, stay):
    assert survivors(TEN, LOSSES, **rules) == stay


def test_the_older_of_equal_values_is_the_best_and_a_file_without_a_value_is_never_the_best():
    assert survivors([1, 2, 3, 4], [5.0, 5.0, None, float("nan")], keep_best=1) == [1, 4]


def test_a_late_save_does_not_shift_the_milestones():
    assert survivors([12, 24, 36, 48, 60, 72], keep_every=24) == [24, 48, 72]
    assert survivors([7, 14, 21, 28, 35, 42], keep_every=10) == [14, 21, 35, 42]


def test_old_files_are_deleted_and_other_files_are_kept(tmp_path):
    foreign = tmp_path / "b1.weights.h5"
    small_model().save_weights(foreign)  # matches the template, and is not of our format
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"Skipped .*b1\.weights\.h5"):
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=2, keep_last=2))
    assert names(tmp_path) == ["b1.weights.h5", "b10.weights.h5", "b8.weights.h5", "notes.txt"]


def test_the_rules_apply_after_a_restart(tmp_path):
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    for epochs in (1, 2):
        fit(
            small_model(),
            GlobalStepCheckpoint(template, save_freq=3, keep_last=2, keep_every=6, resume=True),
            epochs=epochs,
        )
    assert names(tmp_path) == [f"b{batch:02d}.weights.h5" for batch in (6, 12, 18, 20)]


def test_the_best_by_validation_are_kept_after_a_restart(tmp_path):
    values = iter([5.0, 1.0, 4.0, 2.0, 3.0])

    class Fake(keras.callbacks.Callback):
        """Sets the value of each epoch."""

        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = next(values)

    template = str(tmp_path / "e{epoch}.weights.h5")
    for epochs in (3, 5):
        checkpoint = GlobalStepCheckpoint(template, monitor="score", mode="min", save_freq="epoch", keep_best=2, resume=True)
        fit(small_model(), Fake(), checkpoint, epochs=epochs)
    assert names(tmp_path) == ["e2.weights.h5", "e4.weights.h5", "e5.weights.h5"]


def test_later_files_of_another_run_are_named_and_not_deleted(tmp_path):
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=5), epochs=2)
    with pytest.warns(UserWarning, match=r"b20\.weights\.h5 is of another run, which reached batch 20. This run begins at batch 0"):
        fit(small_model(), GlobalStepCheckpoint(template, save_freq=4, keep_last=1))
    assert names(tmp_path) == [f"b{batch:02d}.weights.h5" for batch in (5, 10, 15, 20)]


def test_files_of_a_template_with_the_same_prefix_are_kept(tmp_path):
    best = GlobalStepCheckpoint(str(tmp_path / "m_best_{batch:05d}.weights.h5"), save_freq=2)
    fit(small_model(), best, GlobalStepCheckpoint(str(tmp_path / "m_{batch:05d}.weights.h5"), save_freq=2, keep_last=1))
    assert names(tmp_path) == ["m_00010.weights.h5", *(f"m_best_{batch:05d}.weights.h5" for batch in (2, 4, 6, 8, 10))]


def test_files_of_a_template_with_the_same_names_are_kept_and_no_run_resumes_from_them(tmp_path):
    """Only the content of `m_40` shows that 40 is a number of samples."""
    template, other = str(tmp_path / "m_{batch}.weights.h5"), str(tmp_path / "m_{samples}.weights.h5")
    fit(small_model(), GlobalStepCheckpoint(template), GlobalStepCheckpoint(other, save_freq=3))
    os.utime(tmp_path / "m_10.weights.h5", (0, 0))  # of two files of one batch, the other one is read first
    again = GlobalStepCheckpoint(template, keep_last=1, resume=True)
    with pytest.warns(
        UserWarning, match=r"Skipped .*m_40\.weights\.h5: it was saved by another template, m_{samples}\.weights\.h5"
    ):
        fit(small_model(), again, epochs=2)
    assert again.resumed_from.path == str(tmp_path / "m_10.weights.h5")
    assert names(tmp_path) == [f"m_{number}.weights.h5" for number in (12, 20, 24, 36, 40)]
    assert latest_checkpoint(tmp_path).batch == 20
    assert latest_checkpoint(tmp_path / "m_40.weights.h5").samples == 40


def test_files_of_a_template_with_equal_names_and_counters_are_kept(tmp_path):
    """`{step}` and `{batch}` are equal here: only the stored template shows to which run a file belongs."""
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{step:02d}.weights.h5"), save_freq=2), batches=9)
    checkpoint, model = GlobalStepCheckpoint(str(tmp_path / "b{batch:02d}.weights.h5"), save_freq=5, keep_last=1), small_model()
    fit(model, checkpoint)
    fit(model, checkpoint)
    assert names(tmp_path) == [f"b{number:02d}.weights.h5" for number in (2, 4, 6, 8, 9, 20)]


def test_files_with_an_unreadable_header_or_a_wrong_name_are_kept(tmp_path):
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=2))
    whole = (tmp_path / "b02.weights.h5").read_bytes()
    (tmp_path / "b03.weights.h5").write_bytes(whole)
    (tmp_path / "b04.weights.h5").write_bytes(bytes(len(whole) - 80) + whole[-80:])
    (tmp_path / "b06.weights.h5").write_bytes(whole.replace(b'"batches_in_epoch"', b'"batches_in_epocH"'))
    fit(small_model(), GlobalStepCheckpoint(template, keep_last=1, resume=True), epochs=2)
    assert names(tmp_path) == [f"b{batch:02d}.weights.h5" for batch in (3, 4, 6, 20)]


def test_a_file_that_another_program_has_replaced_is_kept(tmp_path):
    def replace():
        checkpoint._writer.finish()
        shutil.copy(tmp_path / "b02.weights.h5", tmp_path / "b04.weights.h5")

    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch:02d}.weights.h5"), save_freq=2, keep_last=2)
    fit(small_model(), Do(5, replace), checkpoint)
    assert names(tmp_path) == ["b04.weights.h5", "b08.weights.h5", "b10.weights.h5"]


def test_old_files_in_directories_with_counters_are_deleted(tmp_path):
    template = str(tmp_path / "e{epoch}" / "x.weights.h5")
    for epochs in (2, 4):
        fit(small_model(), GlobalStepCheckpoint(template, keep_last=1, resume=True), epochs=epochs)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/x*")] == ["e4/x.weights.h5"]


def test_headers_are_read_once_and_not_at_each_save(tmp_path, monkeypatch):
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=1))
    reads, real = Counter(), stored_header.read_header
    monkeypatch.setattr(stored_header, "read_header", lambda path: (reads.update([path]), real(path))[1])
    checkpoint = GlobalStepCheckpoint(template, save_freq=1, keep_last=15, resume=True)
    fit(small_model(), Do(1, reads.clear), checkpoint, epochs=2)
    # the files that are there at the first save, once; the five that are deleted, once more
    assert reads == {template.format(batch=batch): 2 if batch <= 5 else 1 for batch in range(1, 12)}


def test_hidden_files_of_another_template_are_not_deleted(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    hidden = [f".tmp-{dead.pid}@{pid_space()}@m_{name}.weights.h5" for name in ("00002", "2", "best_00002")]
    for name in hidden:
        (tmp_path / name).touch()
    files.sweep(Template(str(tmp_path / "m_{batch:05d}.weights.h5")))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(hidden[1:])


def test_a_file_that_is_already_gone_is_not_an_error(tmp_path):
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    checkpoint = GlobalStepCheckpoint(template, save_freq=2, keep_last=1, background=False)
    fit(small_model(), checkpoint, Do(3, lambda: os.unlink(tmp_path / "b02.weights.h5")))
    assert names(tmp_path) == ["b10.weights.h5"]


@pytest.mark.parametrize("rule", ["keep_last", "keep_every", "keep_best"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_a_rule_that_is_not_a_number_of_files_is_refused(rule, value):
    with pytest.raises(InputError, match=rf"{rule} must be a positive integer.*{value!r}"):
        GlobalStepCheckpoint("b{batch}.keras", **{rule: value})


@pytest.mark.parametrize("rule", ["keep_last", "keep_every", "keep_best"])
def test_a_rule_for_a_template_without_a_counter_is_refused(rule):
    with pytest.raises(InputError, match=rf"{rule} needs a template with a counter"):
        GlobalStepCheckpoint("last.keras", **{rule: 1})


def saved_after(tmp_path, seconds_per_batch, **triggers):
    """Returns which of ten batches are saved, if each takes a number of seconds of a fake clock."""
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch:02d}.weights.h5"), **triggers)
    clock = Clock(100.0)
    checkpoint._policy = SavePolicy(triggers["save_freq"], triggers.get("save_secs"), clock=clock)

    class Tick(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            clock.now += seconds_per_batch

    fit(small_model(), checkpoint, Tick())
    return [int(name[1:3]) for name in names(tmp_path)]


@pytest.mark.parametrize(
    "triggers, seconds_per_batch, batches",
    [
        ({"save_freq": 1000, "save_secs": 3}, 1, [3, 6, 9, 10]),
        ({"save_freq": 1000, "save_secs": 3}, 2, [2, 4, 6, 8, 10]),
        ({"save_freq": 1000, "save_secs": 0.5}, 1, list(range(1, 11))),
        ({"save_freq": "epoch", "save_secs": 4}, 1, [4, 8, 10]),
        ({"save_freq": 5, "save_secs": 3}, 1, [3, 5, 8, 10]),  # the seconds count from the last save, whatever caused it
        ({"save_freq": 4, "save_secs": 100}, 1, [4, 8, 10]),
        ({"save_freq": 4}, 1000, [4, 8, 10]),
    ],
)
def test_triggers(tmp_path, triggers, seconds_per_batch, batches):
    assert saved_after(tmp_path, seconds_per_batch, **triggers) == batches


def test_best_only_with_a_number_of_batches(tmp_path):
    """Stock Keras raises a KeyError or skips every save here."""
    template = str(tmp_path / "b{batch:02d}.weights.h5")
    model = small_model(keras.optimizers.SGD(0.05))
    fit(model, GlobalStepCheckpoint(template, monitor="loss", save_best_only=True, save_freq=2), epochs=3)
    losses = [latest_checkpoint(tmp_path / name).metrics["loss"] for name in names(tmp_path)]
    assert len(losses) > 1 and losses == sorted(losses, reverse=True)


def test_a_validation_metric_in_the_name_waits_for_the_first_validation(tmp_path):
    template = str(tmp_path / "b{batch:02d}-{val_loss:.4f}.weights.h5")
    checkpoint = GlobalStepCheckpoint(template, save_freq=4)
    history = fit(small_model(), checkpoint, epochs=2, validation_data=arrays())
    first = f"{history.history['val_loss'][0]:.4f}"
    # 4 and 8 wait; the first validation, after batch 10, writes one file; the others carry the newest value of their moment
    assert names(tmp_path) == [f"b{batch}-{first}.weights.h5" for batch in (10, 12, 16, 20)]


def test_a_metric_that_cannot_exist_is_an_error_before_the_first_batch(tmp_path):
    for name, options in (("val_loss", {}), ("acuracy", {"validation_data": arrays()}), ("learning_rate", {})):
        model = small_model()
        with pytest.raises(InputError, match=rf"{{{name}}}.*is neither a counter nor a metric of this run"):
            fit(model, GlobalStepCheckpoint(str(tmp_path / f"{{{name}}}.keras"), save_freq=1), **options)
        assert int(model.optimizer.iterations.numpy()) == 0
    assert names(tmp_path) == []


class Scores(keras.callbacks.Callback):
    """Adds a metric to the logs of an epoch, from some epoch on."""

    def __init__(self, first):
        super().__init__()
        self._first = first

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 >= self._first:
            logs["score"] = float(epoch)


def test_keeping_the_best_of_a_metric_that_cannot_exist_is_an_error_before_training(tmp_path):
    for monitor, options in (("val_loss", {}), ("acuracy", {"validation_data": arrays()})):
        model = small_model()
        checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.keras"), monitor=monitor, mode="min", save_freq=1, keep_best=1)
        with pytest.raises(InputError, match=rf"keep_best compares '{monitor}', which is not a metric of this run.*loss") as raised:
            fit(model, checkpoint, **options)
        assert "\n" not in str(raised.value)
        assert int(model.optimizer.iterations.numpy()) == 0
    assert names(tmp_path) == []


def test_a_metric_that_a_callback_never_adds_deletes_nothing_and_is_reported_once(tmp_path):
    options = {"monitor": "score", "mode": "max", "save_freq": 5, "keep_best": 1}
    with pytest.warns(UserWarning, match="keep_best compares 'score', which was not logged by the end of the epoch") as warned:
        fit(small_model(), Scores(first=9), GlobalStepCheckpoint(str(tmp_path / "b{batch:02d}.keras"), **options), epochs=3)
    assert len([each for each in warned if "keep_best" in str(each.message)]) == 1
    assert names(tmp_path) == [f"b{batch:02d}.keras" for batch in (5, 10, 15, 20, 25, 30)]


def test_nothing_is_deleted_until_the_metric_exists():
    assert survivors(TEN, [None] * 10, keep_best=2) == TEN
    assert survivors(TEN, [None] * 9 + [1.0], keep_best=2) == [100]
    assert survivors(TEN, [None] * 10, keep_best=2, keep_last=1) == [100]


@pytest.mark.parametrize("rule", [{"keep_best": 1}, {"save_best_only": True}])
def test_a_metric_without_a_known_direction_needs_a_mode_before_training(tmp_path, rule):
    model = small_model()
    with pytest.raises(InputError, match=r"monitor='score' has no known direction\. Give mode='min'.*or mode='max'"):
        fit(model, Scores(first=1), GlobalStepCheckpoint(str(tmp_path / "b{batch}.keras"), monitor="score", **rule))
    assert int(model.optimizer.iterations.numpy()) == 0
    for mode, best in (("min", "b10.keras"), ("max", "b20.keras")):
        checkpoint = GlobalStepCheckpoint(str(tmp_path / mode / "b{batch}.keras"), monitor="score", mode=mode, **rule)
        fit(small_model(), Scores(first=1), checkpoint, epochs=2)
        assert best in names(tmp_path / mode)
