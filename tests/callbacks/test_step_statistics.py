"""The times behind the curves, with a fake clock."""

import pytest
from clock import Clock

from callbacks.counting.save_costs import SaveCosts
from callbacks.counts import Counts
from callbacks.curves.step_statistics import StepStatistics


@pytest.fixture
def clock():
    return Clock(50.0)


@pytest.fixture
def statistics(clock):
    return StepStatistics(clock)


def train(statistics, clock, *seconds, begin=0, execution=1):
    for i, each in enumerate(seconds):
        bound = begin + i * execution
        statistics.begin_batch(bound)
        clock.now += each
        assert statistics.end_batch(bound + execution)


def test_median_and_95th_percentile_of_the_batches_of_a_window(statistics, clock):
    train(statistics, clock, *[0.01] * 15, *[0.03] * 5)
    assert statistics.step_times() == pytest.approx({"time/step_median_ms": 10, "time/step_p95_ms": 30})
    statistics.begin_window(Counts(batch=20, samples=80), SaveCosts())
    assert statistics.step_times() == {"time/step_median_ms": 0, "time/step_p95_ms": 0}


def test_an_execution_of_several_batches_counts_each(statistics, clock):
    train(statistics, clock, 0.8, execution=8)
    assert statistics.step_times()["time/step_median_ms"] == pytest.approx(100)


def test_speed_excludes_validation_but_includes_time_between_batches(statistics, clock):
    statistics.begin_window(Counts(batch=10, samples=40), SaveCosts())
    clock.now += 3
    statistics.begin_validation()
    clock.now += 100
    statistics.end_validation()
    clock.now += 2
    assert statistics.throughput(Counts(batch=20, samples=90, replicas=2)) == pytest.approx(
        {
            "throughput/samples_per_second": 10,
            "throughput/samples_per_second_per_replica": 5,
            "batch_steps_per_second": 2,
        }
    )


def test_a_batch_counts_once_and_a_skipped_one_never(statistics, clock):
    train(statistics, clock, 5.0, 2.0)
    assert not statistics.end_batch(2)
    statistics.begin_batch(2)
    clock.now += 7
    assert not statistics.end_batch(2)  # skipped: nothing was trained on
    assert statistics.kept_seconds == pytest.approx(2)  # the first batch is traced
    assert statistics.step_times()["time/step_p95_ms"] == pytest.approx(5000)


def test_waiting_for_data_is_a_share_of_the_batches_in_which_it_was_measured(statistics, clock):
    statistics.begin_batch(0)
    clock.now += 3
    statistics.note_data()
    clock.now += 1
    statistics.end_batch(1)
    train(statistics, clock, 100.0, begin=1)
    assert statistics.data_wait_share() == pytest.approx(0.75)


def test_the_wait_of_the_first_batch_of_an_epoch_counts_once(statistics, clock):
    for number, (wait, begins_epoch) in enumerate([(8.0, True), (1.0, False), (1.0, False), (1.0, False)]):
        statistics.begin_batch(number, begins_epoch)
        clock.now += wait
        if number < 2:  # the sample
            statistics.note_data()
        clock.now += 1
        statistics.end_batch(number + 1)
    assert statistics.data_wait_share() == pytest.approx((8 + 1 + 1 + 1) / (9 + 2 + 2 + 2))


def test_time_alone_ends_when_the_rank_begins_to_wait(statistics, clock):
    statistics.begin_batch(0)
    began = clock.now
    clock.now += 5
    statistics.end_batch(1, gradients_ready_at=began + 2)
    assert statistics.own_median() == pytest.approx(2)


def test_checkpoints_are_those_since_the_previous_point(statistics):
    statistics.begin_window(Counts(), SaveCosts(blocked=1.0, seconds=10.0, size=100))
    assert statistics.checkpoints(SaveCosts(blocked=1.5, seconds=12.0, size=4_000_100)) == pytest.approx(
        {"checkpoint/blocked_seconds": 0.5, "checkpoint/write_seconds": 2, "checkpoint/write_megabytes_per_second": 2}
    )
    assert statistics.checkpoints(SaveCosts(blocked=1.0, seconds=10.0, size=100))["checkpoint/write_megabytes_per_second"] == 0


def test_kept_seconds_accumulate_over_windows_and_restarts(statistics, clock):
    statistics.kept_seconds = 50.0
    train(statistics, clock, 9.0, 1.0)
    statistics.begin_window(Counts(batch=2), SaveCosts())
    train(statistics, clock, 2.0, begin=2)
    assert statistics.kept_seconds == pytest.approx(53)


def test_kept_seconds_are_without_waits_for_data_and_without_what_was_slower_beside_writes(statistics, clock):
    train(statistics, clock, 9.0, 3.0)
    for beside_write in (False, True):
        statistics.begin_batch(2 + beside_write, beside_write=beside_write)
        clock.now += 1
        statistics.note_data()
        clock.now += 2 + beside_write
        statistics.end_batch(3 + beside_write)
    # 10 s, of which 2 in 7 were waits in the sample; the batch beside a write took 1 s longer than the others.
    assert statistics.kept_seconds == pytest.approx(10 - 10 * 2 / 7 - 1)
