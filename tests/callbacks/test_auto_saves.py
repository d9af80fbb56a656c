"""`save_freq="auto"` in a real `fit` with a fake clock: a batch takes one second, a save half a second."""

import keras
import pytest
from small import fit, names, small_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError
from callbacks.saving.save_policy import SavePolicy


class Clock(keras.callbacks.Callback):
    """Advances by one second in each batch."""

    now = 0.0

    def __call__(self):
        return self.now

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 1.0


def run(directory, *callbacks, epochs, **options):
    """Trains ten batches for each epoch; returns the checkpoint callback."""
    clock = Clock()
    checkpoint = GlobalStepCheckpoint(
        directory / "{batch:04d}.weights.h5", save_freq="auto", background=False, resume=True, **options
    )
    checkpoint._policy = SavePolicy("auto", None, checkpoint.max_overhead, clock)
    write = checkpoint._writer.submit

    def slow_write(*args):
        clock.now += 0.5
        write(*args)

    checkpoint._writer.submit = slow_write
    fit(small_model(), *callbacks, clock, checkpoint, epochs=epochs)
    return checkpoint


def test_the_first_save_comes_after_ten_seconds_the_next_as_late_as_pays_and_the_last_at_the_end(tmp_path):
    run(tmp_path, epochs=32)
    # With 294 s and one failure a day, 0.5 s are worthwhile.
    assert names(tmp_path) == ["0010.weights.h5", "0304.weights.h5", "0320.weights.h5"]


def test_a_larger_budget_is_not_used_up_if_failures_are_rare(tmp_path):
    run(tmp_path, epochs=32, max_overhead=0.1)
    assert names(tmp_path) == ["0001.weights.h5", "0295.weights.h5", "0320.weights.h5"]


def test_a_resume_knows_costs_and_failures_and_prints_the_interval(tmp_path, capsys):
    run(tmp_path, epochs=31)
    (tmp_path / "0310.weights.h5").unlink()  # as if it had been killed
    resumed = run(tmp_path, GlobalStepTensorBoard(tmp_path / "events", update_freq=5, write_graph=False), epochs=32)
    assert resumed._policy.interval.between_failures == pytest.approx((86400 + 320) / 2, rel=0.01)
    assert "Saving every 3 min: a save costs 500 ms; failures: 1 in" in capsys.readouterr().out.replace("\n", "")
    reader = EventAccumulator(str(tmp_path / "events" / "batches")).Reload()
    intervals = [event.value for event in reader.Scalars("checkpoint/interval_seconds")]
    assert intervals == pytest.approx([(2 * 0.5 * 86400 / 2) ** 0.5] * len(intervals), rel=0.01)


def test_a_run_that_ended_well_has_not_failed(tmp_path):
    run(tmp_path, epochs=2)
    assert run(tmp_path, epochs=3)._policy.interval.get_state(is_last=True)["failures"] == 0


@pytest.mark.parametrize("max_overhead", [0, 1, -0.5, "1 %"])
def test_a_budget_is_a_share_of_the_time(tmp_path, max_overhead):
    with pytest.raises(InputError, match=r"max_overhead.*Received"):
        GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq="auto", max_overhead=max_overhead)
