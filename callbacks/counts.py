"""One reading of what a model has been trained on. It imports nothing, so that files can be listed in a moment."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Counts:
    """One reading of the counters, and where in the epoch it was taken.

    Args:
        batch: global batches trained on since training began, over all restarts.
        step: optimizer updates; where there are several optimizers, of the one that was stepped most.
        epoch: the epoch that the last batch belongs to, 1-based as in Keras.
        samples: examples trained on.
        replicas: devices that share each global batch.
        batches_in_epoch: how many of the batches are of this epoch.
        samples_in_epoch: how many of the samples are of this epoch.
        epoch_ended: whether this epoch's validation and `on_epoch_end` have ended too.
    """

    batch: int = 0
    step: int = 0
    epoch: int = 1
    samples: int = 0
    replicas: int = 1
    batches_in_epoch: int = 0
    samples_in_epoch: int = 0
    epoch_ended: bool = False

    def to_json(self) -> dict:
        """Returns the counts as plain numbers."""
        return asdict(self)
