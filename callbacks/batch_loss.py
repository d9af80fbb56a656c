"""The loss of a batch alone, from what Keras tells: the mean over the batches of the epoch so far."""


class BatchLoss:
    """Follows the mean through an epoch.

    Attributes:
        alone: the loss of the last batch; of several, where one call of the device trains on several; None if it is not known.

    Example:

    >>> loss = BatchLoss()
    >>> loss.begin_epoch(batch=100)
    >>> loss.end_batch(batch=101, mean=4.0)
    >>> loss.end_batch(batch=102, mean=3.0)
    >>> loss.alone
    2.0
    """

    def __init__(self) -> None:
        self.begin_epoch(0)

    def begin_epoch(self, batch: int) -> None:
        """To be called when an epoch begins, or is resumed.

        Args:
            batch: the batch counter when the epoch began.
        """
        self._began, self._done, self._sum = batch, 0, 0.0
        self.alone: float | None = None

    def end_batch(self, batch: int, mean: float | None) -> None:
        """To be called after a batch; a second call for the same batch does nothing.

        Args:
            batch: the batch counter.
            mean: of the loss, over the batches of the epoch so far; None if nobody tells it.
        """
        done = batch - self._began
        if mean is None or done <= self._done:
            return
        total = float(mean) * done
        self.alone = (total - self._sum) / (done - self._done)
        self._done, self._sum = done, total
