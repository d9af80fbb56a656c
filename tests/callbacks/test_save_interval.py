"""`save_freq="auto"`: a simulated year of training, with the cost of saves and a machine that fails."""

import math
import random

import pytest
from clock import Clock

from callbacks.saving.save_interval import PRIOR_COST, SaveInterval
from callbacks.saving.save_policy import SavePolicy

HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0
BUDGET = 0.01


class Fixed:
    """A policy that saves at a fixed interval."""

    interval = None
    ends = False

    def __init__(self, seconds, clock, batch_seconds):
        self._seconds, self._clock, self._batch_seconds = seconds, clock, batch_seconds

    def begin(self, batch):
        self._saved_at, self.next_batch = self._clock(), batch + 1

    def saved(self, batch):
        self._saved_at = self._clock()

    def decide(self, batch, is_writing):
        left = self._saved_at + self._seconds - self._clock()
        is_due = left <= 0 and not is_writing
        return {
            "is_due": is_due,
            "next_batch": batch + max(1, math.ceil((self._seconds if is_due else left) / self._batch_seconds)),
        }

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


class World:
    """A machine that trains for a year: it fails at the same moments for every policy.

    Args:
        blocked: seconds that a save blocks training, on average.
        writes: seconds to write a file.
        slower: the fraction by which batches are slower meanwhile.
        fails_every: seconds between two failures, on average.
    """

    batch_seconds, restart_seconds = 5.0, 300.0

    def __init__(self, *, blocked, writes, slower, fails_every):
        self.blocked, self.writes, self.slower, self.fails_every = blocked, writes, slower, fails_every

    def train(self, make_policy):
        """Trains for a year. Returns the shares of time that saves and failures have cost."""
        self.clock, self.saves, chance = Clock(), 0, random.Random(1)
        failures = random.Random(2)
        self.policy, self.cost, lost = make_policy(self.clock), 0.0, 0.0
        self.batch, committed, state, self.write_ends = 0, (0, 0.0), {}, None
        self.policy.begin(0)
        fails_at = failures.expovariate(1 / self.fails_every)
        while self.clock.now < YEAR:
            if not self._trains_to_next_check(fails_at):
                lost += fails_at - committed[1]
                self.clock.now, self.batch, self.write_ends = fails_at + self.restart_seconds, committed[0], None
                fails_at = self.clock.now + failures.expovariate(1 / self.fails_every)
                committed = (self.batch, self.clock.now)
                self.policy.begin(self.batch)
                self.policy.set_state(state)
                continue
            answer = self.policy.decide(self.batch, self._is_writing())
            self.policy.next_batch = answer["next_batch"]
            if answer["is_due"]:
                assert not self._is_writing()
                state, committed = self.policy.get_state(), (self.batch, self.clock.now)
                self._save(chance)
        return self.cost / YEAR, lost / YEAR

    def _is_writing(self):
        return self.write_ends is not None and self.clock.now < self.write_ends

    def _save(self, chance):
        self.policy.saved(self.batch)
        seconds = self.blocked * chance.uniform(0.5, 1.5)
        self.clock.now += seconds
        self.cost += seconds
        self.saves += 1
        if self.policy.interval:
            self.policy.interval.note_blocked(seconds)
        self.write_ends = self.clock.now + self.writes * chance.uniform(0.5, 1.5)

    def _trains_to_next_check(self, fails_at):
        """Returns whether the machine reaches the next check without a failure."""
        while self.batch < self.policy.next_batch:
            beside = self._is_writing()
            each = self.batch_seconds * (1 + self.slower if beside else 1)
            left = self.policy.next_batch - self.batch
            count = min(left, math.ceil((self.write_ends - self.clock.now) / each)) if beside else left
            if self.clock.now + count * each > fails_at:
                return False
            self.clock.now += count * each
            self.batch += count
            self.cost += count * (each - self.batch_seconds)
            if self.policy.interval:
                self.policy.interval.end_batches(count, count * each, beside)
        return True


WORLDS = {
    "small, a failure a week": World(blocked=0.2, writes=1, slower=0.0, fails_every=7 * DAY),
    "large, slower beside writes, a failure a day": World(blocked=1.0, writes=40, slower=0.1, fails_every=DAY),
    "fails often": World(blocked=0.5, writes=10, slower=0.05, fails_every=6 * HOUR),
    "huge and fails often, so that the budget binds": World(blocked=20.0, writes=300, slower=0.05, fails_every=6 * HOUR),
}


def best_fixed(world):
    """Returns the cost of saves and failures with the best fixed interval of 1 to 135 minutes within the budget."""
    best = math.inf
    for seconds in (60 * 1.25**i for i in reversed(range(23))):
        overhead, lost = world.train(lambda clock, seconds=seconds: Fixed(seconds, clock, World.batch_seconds))
        if overhead > min(best, BUDGET):
            break  # saves at shorter intervals cost even more
        best = min(best, overhead + lost)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_year_stays_within_the_budget_and_loses_as_little_as_the_best_fixed_interval(name):
    world = WORLDS[name]
    overhead, lost = world.train(lambda clock: SavePolicy("auto", max_overhead=BUDGET, clock=clock))
    assert overhead <= BUDGET
    assert overhead + lost <= 1.1 * best_fixed(world)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def interval(clock):
    return SaveInterval(BUDGET, clock)


def test_the_first_save_is_as_early_as_the_budget_allows(interval):
    assert interval.seconds == pytest.approx(PRIOR_COST / BUDGET)


def test_the_interval_is_youngs_with_one_failure_a_day_as_prior(interval):
    interval.saved()
    interval.note_blocked(0.5)
    assert interval.seconds == pytest.approx(math.sqrt(2 * 0.5 * DAY))


def test_the_budget_takes_precedence_over_failures(interval):
    interval.saved()
    interval.note_blocked(100)
    assert interval.seconds == pytest.approx(100 / BUDGET)


def test_slower_batches_during_a_write_count_as_its_cost(interval):
    interval.end_batches(1, 60.0, False)  # compiles
    interval.end_batches(10, 10.0, False)
    interval.saved()
    interval.note_blocked(0.5)
    interval.end_batches(4, 6.0, True)
    assert interval.cost == pytest.approx(0.5 + 4 * 0.5)


def test_failures_of_earlier_processes_shorten_the_interval(interval, clock):
    clock.now += DAY
    for failures, is_last in ((0, True), (1, False), (2, False), (2, True)):
        interval.set_state(interval.get_state(is_last))
        interval._earlier_seconds = DAY  # as the test does not restart the clock
        interval._began = clock.now
        assert interval.between_failures == pytest.approx(2 * DAY / (1 + failures))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 10**400, "x", None, []], ids=str)
@pytest.mark.parametrize("name", ["seconds", "failures", "saves", "blocked", "batches", "batch_seconds"])
def test_measurements_with_which_arithmetic_would_fail_are_refused(interval, name, value):
    state = interval.get_state(is_last=True)
    state[name] = [value, value] if name.startswith("batch") else value
    with pytest.raises((ValueError, TypeError)):
        interval.set_state(state)


def test_no_save_is_due_during_a_write_and_checks_become_rare(interval, clock):
    interval.end_batches(1, 1.0, False)
    interval.end_batches(1000, 1000.0, False)
    interval.saved()
    interval.note_blocked(0.001)
    clock.now += 400.0
    assert interval.is_due(is_writing=False) and not interval.is_due(is_writing=True)
    assert interval.batches_to_next_check(is_writing=True) == 50
    assert interval.batches_to_next_check(is_writing=False) == 1


def test_checks_become_more_frequent_near_the_save_and_are_never_beyond_twice_the_batches_seen(interval, clock):
    interval.end_batches(1, 1.0, False)
    interval.end_batches(3, 0.003, False)
    assert interval.batches_to_next_check(is_writing=False) == 4
    interval.end_batches(996, 0.996, False)
    assert interval.batches_to_next_check(is_writing=False) == 1000
    clock.now += 9.0
    assert interval.batches_to_next_check(is_writing=False) in (499, 500)


def test_the_interval_is_printed_once_and_again_after_a_large_change(interval):
    assert interval.report() is None
    interval.saved()
    interval.note_blocked(0.5)
    assert interval.report().startswith("Saving every 5 min: a save costs 500 ms; failures: 0 in")
    assert interval.report() is None
    interval.note_blocked(0.5)
    assert interval.report() is None
    interval.note_blocked(4.0)
    assert interval.report().startswith("Saving every 15 min")
