"""Callbacks for any `model.fit`: checkpoints named by the global step, exact resume, and curves over the global step.

They need Keras and TensorFlow and nothing else of this repository. Both are imported at the first use of a name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.batch_aware import BatchAwareCheckpoint
    from callbacks.checkpoint import GlobalStepCheckpoint
    from callbacks.counters import Counters, counters_of
    from callbacks.counts import Counts
    from callbacks.errors import CheckpointReadError, CheckpointWriteError, EventWriteError, InputError
    from callbacks.preemption import Preempted, catch_signals
    from callbacks.restoring import Checkpoint, latest_checkpoint, restore
    from callbacks.run_record import RunRecord
    from callbacks.tensorboard import GlobalStepTensorBoard

_MODULES = {
    "BatchAwareCheckpoint": "batch_aware",
    "Checkpoint": "restoring",
    "CheckpointReadError": "errors",
    "CheckpointWriteError": "errors",
    "Counters": "counters",
    "Counts": "counts",
    "EventWriteError": "errors",
    "GlobalStepCheckpoint": "checkpoint",
    "GlobalStepTensorBoard": "tensorboard",
    "InputError": "errors",
    "Preempted": "preemption",
    "RunRecord": "run_record",
    "catch_signals": "preemption",
    "counters_of": "counters",
    "latest_checkpoint": "restoring",
    "restore": "restoring",
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
