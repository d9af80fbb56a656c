"""A run from its start to its exit code: what it records, what it prints, and how it ends."""

from recipes.common.run.callbacks import training_callbacks
from recipes.common.run.program import run

__all__ = ["run", "training_callbacks"]
