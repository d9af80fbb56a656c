"""Counts the batches of a custom training loop, which may call `train_on_batch`, or a step that this package cannot observe."""

from collections import Counter
from collections.abc import Sequence


class CustomLoopCounts:
    """Counts the batches of a custom training loop by its calls of `on_train_batch_end`.

    Args:
        batch: the batch counter when the loop began.
        step: the step counter then.
        updates: the update count of each optimizer then.

    Attributes:
        has_skipped: whether the batch that ends now was skipped, since it was trained on before the resume.
        is_unseen: whether the batch that ended last went through no train step of the model.
    """

    def __init__(self, batch: int, step: int, updates: Sequence[int]):
        self._batch, self._step, self._updates = batch, step, updates
        self._calls: Counter[int] = Counter()  # of each callback that counts
        self.has_skipped = self.is_unseen = False

    @property
    def batches(self) -> int:
        """The number of batches that have ended."""
        return max(self._calls.values(), default=0)

    def end_batch(self, caller: object) -> bool:
        """Counts a call of `on_train_batch_end`.

        Args:
            caller: the callback that calls. The calls of each callback are counted apart.

        Returns:
            Whether this is the first call for the batch.
        """
        before = self.batches
        self._calls[id(caller)] += 1
        return self.batches > before

    def uncounted(self, batch: int, step: int, updates: Sequence[int]) -> tuple[int, int]:
        """Returns the batches and steps that the device has not counted.

        Args:
            batch: the batch counter according to the device.
            step: the step counter according to the device.
            updates: the update count of each optimizer now.
        """
        batches = self._batch + self.batches - batch
        if batches <= 0:  # `train_on_batch`, perhaps several calls for each batch of the loop
            return batches, 0
        made = [now - earlier for earlier, now in zip(self._updates, updates, strict=True)]
        return batches, self._step + max(made, default=self.batches) - step
