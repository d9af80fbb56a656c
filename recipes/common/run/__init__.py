"""The run of a recipe: its callbacks, its output and its exit code."""

from recipes.common.run.callbacks import training_callbacks
from recipes.common.run.program import run

__all__ = ["run", "training_callbacks"]
