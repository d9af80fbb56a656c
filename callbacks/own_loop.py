"""Counting in a training loop of the user's own, which may call `train_on_batch` or a step that nobody sees."""

from collections import Counter
from collections.abc import Sequence


class OwnLoop:
    """What such a loop has trained on, by the calls of `on_train_batch_end`.

    Args:
        batch: batches trained on when it began.
        step: optimizer updates then.
        updates: of each optimizer by its own count, then.

    Attributes:
        has_skipped: whether the batch that ends now was not trained on.
        is_unseen: whether no train step of the model has seen it.
    """

    def __init__(self, batch: int, step: int, updates: Sequence[int]):
        self._batch, self._step, self._updates = batch, step, updates
        self._calls: Counter[int] = Counter()  # of each callback that counts
        self.has_skipped = self.is_unseen = False

    @property
    def batches(self) -> int:
        """How many batches have ended."""
        return max(self._calls.values(), default=0)

    def end_batch(self, caller: object) -> bool:
        """Counts a call of `on_train_batch_end`.

        Args:
            caller: the callback; each of several counts its own calls.

        Returns:
            Whether this is the first call for the batch.
        """
        before = self.batches
        self._calls[id(caller)] += 1
        return self.batches > before

    def uncounted(self, batch: int, step: int, updates: Sequence[int]) -> tuple[int, int]:
        """Returns the batches and the steps that the device has not counted.

        Args:
            batch: batches trained on, as far as the device has counted.
            step: optimizer updates, likewise.
            updates: of each optimizer by its own count, now.
        """
        batches = self._batch + self.batches - batch
        if batches <= 0:  # `train_on_batch`, maybe several times for each batch of the loop
            return batches, 0
        made = [now - earlier for earlier, now in zip(self._updates, updates, strict=True)]
        return batches, self._step + max(made, default=self.batches) - step
