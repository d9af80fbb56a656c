"""Callbacks for any `model.fit`: checkpoints named by the global step, exact resume, and curves over the global step.

They need Keras and TensorFlow and nothing else of this repository. Both are imported at the first use of a name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.counting.counters import Counters, counters_of
    from callbacks.counts import Counts
    from callbacks.curves.tensorboard import GlobalStepTensorBoard
    from callbacks.errors import CheckpointReadError, CheckpointWriteError, EventWriteError, InputError
    from callbacks.preemption import Preempted, catch_signals
    from callbacks.report.run_record import RunRecord
    from callbacks.resuming.restoring import Checkpoint, latest_checkpoint, restore
    from callbacks.saving.batch_aware import BatchAwareCheckpoint
    from callbacks.saving.checkpoint import GlobalStepCheckpoint

_MODULES = {
    "BatchAwareCheckpoint": "saving.batch_aware",
    "Checkpoint": "resuming.restoring",
    "CheckpointReadError": "errors",
    "CheckpointWriteError": "errors",
    "Counters": "counting.counters",
    "Counts": "counts",
    "EventWriteError": "errors",
    "GlobalStepCheckpoint": "saving.checkpoint",
    "GlobalStepTensorBoard": "curves.tensorboard",
    "InputError": "errors",
    "Preempted": "preemption",
    "RunRecord": "report.run_record",
    "catch_signals": "preemption",
    "counters_of": "counting.counters",
    "latest_checkpoint": "resuming.restoring",
    "restore": "resuming.restoring",
}

__all__ = [
    "BatchAwareCheckpoint",
    "Checkpoint",
    "CheckpointReadError",
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
