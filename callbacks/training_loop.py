"""A training loop of this process, and whether it still runs."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """A training loop: a call of `fit`, or all that a thread runs.

    Args:
        thread: the thread's identifier.
        fit: the `id` of the frame of `fit`; None for a loop of the user's own. The frame itself would keep its data alive.
    """

    thread: int
    fit: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it may still run: a `fit` does while its frame is there, a loop of the user's own while its thread is."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None and self.fit not in (None, id(frame)):
            frame = frame.f_back
        return frame is not None

    def excludes(self, other: "Loop") -> bool:
        """Whether this loop still runs beside the other. One thread runs loops of the user's own one after the other."""
        is_another = self != other if self.fit is not None else self.thread != other.thread
        return is_another and self.is_running
