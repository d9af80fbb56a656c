"""Computes the loss of a single batch from Keras's running mean over the batches of the epoch."""


class BatchLoss:
    """Computes single losses from the running mean.

    Attributes:
        alone: the loss of the last batch, or the mean over the batches of one execution; None if unknown.

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
        """Starts an epoch, or resumes one.

        Args:
            batch: the batch counter when the epoch began.
        """
        self._began, self._done, self._sum = batch, 0, 0.0
        self.alone: float | None = None

    def end_batch(self, batch: int, mean: float | None) -> None:
        """Notes the mean after a batch. A second call for the same batch does nothing.

        Args:
            batch: the batch counter.
            mean: the mean loss over the batches of the epoch so far; None if unknown.
        """
        done = batch - self._began
        if mean is None or done <= self._done:
            return
        total = float(mean) * done
        self.alone = (total - self._sum) / (done - self._done)
        self._done, self._sum = done, total
