"""The costs of the checkpoints of a model."""

from dataclasses import dataclass

import keras

from callbacks.model.attached import attach, attached


@dataclass
class SaveCosts:
    """The costs of checkpoints so far, in this process.

    Args:
        blocked: seconds that training stood still.
        seconds: seconds of writing, mostly while training continued.
        size: the total size of the files, in bytes.
        is_writing: whether a checkpoint is being written.
        newest: batch and path of the checkpoint written last or resumed from; None if there is none.
        interval: seconds between checkpoints under `save_freq="auto"`; None otherwise.
    """

    blocked: float = 0.0
    seconds: float = 0.0
    size: int = 0
    is_writing: bool = False
    newest: tuple[int, str] | None = None
    interval: float | None = None


def save_costs_of(model: keras.Model) -> SaveCosts:
    """Returns the costs of a model's checkpoints, the same object each time."""
    return attached(model, SaveCosts) or attach(model, SaveCosts())
