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

    def runs(self) -> bool:
        """Whether this loop has not ended. One of the user's own ends with its thread, for all that is known."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None and self.fit is not None and id(frame) != self.fit:
            frame = frame.f_back
        return frame is not None

    def excludes(self, other: "Loop") -> bool:
        """Whether this loop still runs beside the other. One thread runs loops of the user's own one after the other."""
        is_next = self.fit is None and self.thread == other.thread
        return self != other and not is_next and self.runs()
