"""Callbacks for anybody's `model.fit`: checkpoints named by the global step, and exact resume.

They need Keras and TensorFlow and nothing else of this repository.
"""

from callbacks.batch_aware import BatchAwareCheckpoint
from callbacks.checkpoint import GlobalStepCheckpoint
from callbacks.counters import Counters, Counts, counters_of
from callbacks.errors import CheckpointWriteError, InputError
from callbacks.restoring import Checkpoint, latest_checkpoint, restore

__all__ = [
    "BatchAwareCheckpoint",
    "Checkpoint",
    "CheckpointWriteError",
    "Counters",
    "Counts",
    "GlobalStepCheckpoint",
    "InputError",
    "counters_of",
    "latest_checkpoint",
    "restore",
]
