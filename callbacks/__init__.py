"""Callbacks for anybody's `model.fit`: checkpoints named by the global step, exact resume, and curves over it.

They need Keras and TensorFlow and nothing else of this repository.
"""

from callbacks.batch_aware import BatchAwareCheckpoint
from callbacks.checkpoint import GlobalStepCheckpoint
from callbacks.counters import Counters, Counts, counters_of
from callbacks.errors import CheckpointWriteError, EventWriteError, InputError
from callbacks.preemption import Preempted, catch_signals
from callbacks.restoring import Checkpoint, latest_checkpoint, restore
from callbacks.run_record import RunRecord
from callbacks.tensorboard import GlobalStepTensorBoard

__all__ = [
    "BatchAwareCheckpoint",
    "Checkpoint",
    "CheckpointWriteError",
    "Counters",
    "Counts",
    "EventWriteError",
    "GlobalStepCheckpoint",
    "GlobalStepTensorBoard",
    "InputError",
    "Preempted",
    "RunRecord",
    "catch_signals",
    "counters_of",
    "latest_checkpoint",
    "restore",
]
