"""Decides when a checkpoint is due on all ranks, by the chief's clock."""

from collections.abc import Iterator, Mapping
from typing import Any

from callbacks.counting.counters import Counters
from callbacks.counting.save_costs import SaveCosts
from callbacks.counts import Counts
from callbacks.disk.writer import Writer
from callbacks.ranks import ranks
from callbacks.saving.save_policy import SavePolicy


class SaveSchedule:
    """Starts the policy at the current batch, reports to it the durations of batches and saves, and asks it what is due.

    Args:
        policy: the policy.
        counters: the counters of the model in training.
        costs: the costs of checkpoints; receives the interval that the policy has chosen.
        writer: writes the checkpoints.

    Attributes:
        policy: as given.
    """

    def __init__(self, policy: SavePolicy, counters: Counters, costs: SaveCosts, writer: Writer):
        self.policy, self._counters, self._costs, self._writer = policy, counters, costs, writer
        self._batch_began: float | None = None
        self._bound, self._is_writing = 0, False
        policy.begin(counters.read().batch)

    def planned(self, params: Mapping[str, Any] | None, first_epoch: int, per_execution: int) -> Iterator[Counts]:
        """Yields the counters of each checkpoint to come, as `SavePolicy.planned`. Call it before the first batch.

        Args:
            params: the `params` that Keras gives to callbacks: `epochs` and `steps`.
            first_epoch: the 0-based epoch that begins next, or that a resume finishes.
            per_execution: the batches of an execution.
        """
        begin = self._counters.begin_of_epoch(first_epoch)
        return self.policy.planned(params, self._counters.read(), begin, per_execution)

    def begin_batch(self) -> None:
        """Notes the start of a batch, or of an execution of several. Call it in `on_train_batch_begin`."""
        if self.policy.interval:
            self._bound, self._is_writing = self._counters.batch_bound, self._writer.is_writing
            self._batch_began = self.policy.clock()

    def is_due(self) -> bool:
        """Returns whether a checkpoint is due after this batch. Call it after each batch, on every rank."""
        self._note_batch()
        if not self._counters.reached(self.policy.next_batch):
            return self._is_due_by_time()
        answer = self.policy.decide(self._counters.read().batch, self._writer.is_writing)
        if self.policy.interval:
            answer = ranks().broadcast(answer)
            self._report(self.policy.interval)
        self.policy.next_batch = answer["next_batch"]
        return answer["is_due"] or self._is_due_by_time()

    def note_blocked(self, seconds: float) -> None:
        """Notes how long training stood still for a save."""
        self._costs.blocked += seconds
        if self.policy.interval:
            self.policy.interval.note_blocked(seconds)

    def finish(self) -> None:
        """Waits for the save in flight.

        Raises:
            CheckpointWriteError: if the save fails.
        """
        began = self.policy.clock()
        self._writer.finish()
        self._costs.blocked += self.policy.clock() - began

    def _note_batch(self):
        if self.policy.interval and self._batch_began is not None:
            trained = self._counters.batch_bound - self._bound
            if trained:  # a batch that a resume skips trains nothing
                self.policy.interval.end_batches(trained, self.policy.clock() - self._batch_began, self._is_writing)
            self._batch_began = None

    def _report(self, interval):
        self._costs.interval = interval.seconds
        if ranks().is_chief and (line := interval.report()):
            print(f"\n{line}", flush=True)

    def _is_due_by_time(self):
        has_trained = self._counters.batch_bound > self.policy.saved_batch  # not while a resume skips batches
        if not (self.policy.may_be_due_by_time and has_trained):
            return False
        return ranks().any(ranks().is_chief and self.policy.is_due_by_time())
