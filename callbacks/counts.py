"""A reading of the counters. This file imports neither Keras nor TensorFlow, so that listing files is fast."""

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Counts:
    """A reading of the counters, with its position in the epoch.

    Args:
        batch: global batches trained on since training began, over all restarts.
        step: optimizer updates; with several optimizers, those of the one that was updated most often.
        epoch: the 1-based epoch of the last batch.
        samples: examples trained on.
        replicas: devices that share each global batch.
        batches_in_epoch: the batches of this epoch.
        samples_in_epoch: the samples of this epoch.
        epoch_ended: whether the validation and `on_epoch_end` of this epoch are over too.
    """

    batch: int = 0
    step: int = 0
    epoch: int = 1
    samples: int = 0
    replicas: int = 1
    batches_in_epoch: int = 0
    samples_in_epoch: int = 0
    epoch_ended: bool = False

    def later(self, batches: int, samples: int) -> "Counts":
        """Returns the counts after further batches, at the same place in the epoch."""
        return replace(self, batch=self.batch + batches, samples=self.samples + samples)

    def to_json(self) -> dict:
        """Returns the counts as plain numbers."""
        return asdict(self)


def next_multiple(batch: int, every: int) -> int:
    """Returns the first multiple of `every` above `batch`."""
    return (batch // every + 1) * every
