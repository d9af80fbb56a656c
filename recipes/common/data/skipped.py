"""Batches that are left out of the data order, because training fails on them.

Source: Chowdhery et al. 2022, "PaLM", section 5.1, https://arxiv.org/abs/2204.02311: training resumes from a checkpoint before a
spike of the loss, without the batches around the spike.
"""

from typing import Any

import keras

from callbacks import InputError

_MOST_RANGES = 1000  # each costs time at each batch
_LAST_BATCH = 1 << 40  # the number of a sample is an int64


class SkippedBatches(keras.callbacks.Callback):
    """The batches to leave out of the data order: those of the flag and, after a resume, those that the checkpoint stores.

    Positions in the order count from 1, over all epochs. Batches that are left out do not count as trained on: an epoch keeps its
    length, and later batches move up. The class is a callback, so that checkpoints store the ranges.

    Args:
        batches_per_epoch: batches in an epoch of the order.

    Attributes:
        flag: the first and the last batch to leave out; None for none.
        ranges: the first and the last batch of each range, ascending and disjoint.

    Example:

    >>> skipped = SkippedBatches(batches_per_epoch=10)
    >>> skipped.flag = (3, 5)
    >>> skipped.begin(trained=0)
    >>> skipped.runs(0, 10)  # the first epoch is trained on batches 1 and 2, 6 to 10, and three of the next pass
    [(0, 2), (5, 10), (10, 13)]
    """

    def __init__(self, batches_per_epoch: int):
        super().__init__()
        self._batches_per_epoch = batches_per_epoch
        self.flag: tuple[int, int] | None = None
        self.ranges: list[tuple[int, int]] = []

    def get_state(self) -> dict[str, Any]:
        return {"ranges": [list(each) for each in self.ranges], "batches_per_epoch": self._batches_per_epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        ranges, batches_per_epoch = state["ranges"], state["batches_per_epoch"]
        if len(ranges) > _MOST_RANGES or not all(_is_range(*each) for each in ranges):
            raise ValueError("a range has no first and last batch, or there are too many ranges")
        if ranges and batches_per_epoch != self._batches_per_epoch:
            raise InputError(
                f"The checkpoint leaves out batches {_as_text(ranges):.200} of an order with {batches_per_epoch!r:.20} batches in "
                f"an epoch. Received: data and flags with {self._batches_per_epoch} batches. Resume with the same data and flags."
            )
        self.ranges = _united([*self.ranges, *map(tuple, ranges)])

    def begin(self, trained: int) -> None:
        """Applies the flag. Called before each epoch, and after `set_state`.

        Args:
            trained: batches trained on so far.

        Raises:
            InputError: if the flag names batches that are already trained on, or that the run does not reach.
        """
        if self.flag is None or any(first <= self.flag[0] and self.flag[1] <= last for first, last in self.ranges):
            return
        first, last = self.flag
        next_one = self._place(trained - 1) + 2 if trained else 1
        if first < next_one:
            raise InputError(
                f"--skip-batches {first}:{last} begins before batch {next_one} of the order, the next batch to train on. Resume "
                f"from a checkpoint at batch {first - 1} or earlier: --resume PATH, with another --workdir."
            )
        planned = (self.params or {}).get("epochs", 0) * self._batches_per_epoch
        if last > planned > 0:
            raise InputError(f"--skip-batches {first}:{last} ends after batch {planned}, the last batch of the last epoch.")
        self.ranges = _united([*self.ranges, self.flag])

    def runs(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Returns the positions of batches in the order, as contiguous runs within one epoch of the order.

        Args:
            begin: the first batch, counted from 0 over the batches that are trained on.
            end: the batch after the last one.

        Returns:
            The position of the first batch of each run, and the position after its last batch, counted from 0.
        """
        found = []
        while begin < end:
            place = self._place(begin)
            gaps = [first - 1 for first, _ in self.ranges if first - 1 > place]
            stop = min([(place // self._batches_per_epoch + 1) * self._batches_per_epoch, place + end - begin, *gaps])
            found.append((place, stop))
            begin += stop - place
        return found

    @property
    def text(self) -> str:
        """The ranges in the format of the flag."""
        return _as_text(self.ranges)

    def _place(self, batch):
        for first, last in self.ranges:
            if batch >= first - 1:
                batch += last - first + 1
        return batch


def _is_range(first, last):
    return type(first) is type(last) is int and 0 < first <= last <= _LAST_BATCH


def _united(ranges):
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _as_text(ranges):
    return ", ".join(f"{first}:{last}" for first, last in ranges)
