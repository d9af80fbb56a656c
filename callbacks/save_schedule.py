"""When a checkpoint is due, for all ranks at once: the chief's clock decides, and the policy is asked where it wants to be."""

from callbacks.counters import Counters
from callbacks.ranks import ranks
from callbacks.save_costs import SaveCosts
from callbacks.save_policy import SavePolicy
from callbacks.writer import Writer


class SaveSchedule:
    """Tells the policy of one training how long batches and saves take, and asks it whether a checkpoint is due.

    Args:
        policy: decides; its training has begun.
        counters: of the model in training.
        costs: what checkpoints have cost; gets the interval that the policy has chosen.
        writer: tells whether a checkpoint is being written.

    Attributes:
        policy: as given.
    """

    def __init__(self, policy: SavePolicy, counters: Counters, costs: SaveCosts, writer: Writer):
        self.policy, self._counters, self._costs, self._writer = policy, counters, costs, writer
        self._batch_began: float | None = None
        self._bound, self._is_writing = 0, False

    def begin_batch(self) -> None:
        """To be called before a batch, or an execution of several."""
        if self.policy.interval:
            self._bound, self._is_writing = self._counters.batch_bound, self._writer.is_writing
            self._batch_began = self.policy.clock()

    def is_due(self) -> bool:
        """Whether a checkpoint is due after this batch; to be called after each batch, on every rank."""
        self._note_batch()
        if not self._counters.reached(self.policy.next_batch):
            return self._is_due_by_time()
        answer = self.policy.look(self._counters.read().batch, self._writer.is_writing)
        if self.policy.interval:
            answer = ranks().broadcast(answer)
            self._tell(self.policy.interval)
        self.policy.next_batch = answer["next_batch"]
        return answer["is_due"] or self._is_due_by_time()

    def note_blocked(self, seconds: float) -> None:
        """Notes how long training stood still for a save."""
        self._costs.blocked += seconds
        if self.policy.interval:
            self.policy.interval.note_blocked(seconds)

    def finish(self) -> None:
        """Waits for the save in flight; training stands still meanwhile.

        Raises:
            CheckpointWriteError: if it fails.
        """
        began = self.policy.clock()
        self._writer.finish()
        self._costs.blocked += self.policy.clock() - began

    def _note_batch(self):
        if self.policy.interval and self._batch_began is not None:
            trained = self._counters.batch_bound - self._bound
            if trained:  # not by a batch that is skipped after a resume
                self.policy.interval.end_batches(trained, self.policy.clock() - self._batch_began, self._is_writing)
            self._batch_began = None

    def _tell(self, interval):
        self._costs.interval = interval.seconds
        if ranks().is_chief and (news := interval.news()):
            print(f"\n{news}", flush=True)

    def _is_due_by_time(self):
        has_trained = self._counters.batch_bound > self.policy.saved_batch  # and does not skip what a resume has left behind
        if not (self.policy.may_be_due_by_time and has_trained):
            return False
        return ranks().any(ranks().is_chief and self.policy.is_due_by_time())
