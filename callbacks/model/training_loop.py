"""Identifies a training loop of this process, to find out whether it still runs."""

import sys
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loop:
    """A training loop: a call of `fit`, or everything that a thread runs.

    Args:
        fit: the `id` of the frame of `fit`; None for a custom training loop. A reference to the frame would keep its data alive.
        iterator: Keras's iterator over the epochs, a local variable of that frame; a later frame may get the same `id`. None if
            unknown.
        thread: the thread; by default this one. A later thread may get the same identifier.
    """

    fit: int | None = None
    iterator: weakref.ref[Any] | None = field(default=None, compare=False)
    thread: threading.Thread = field(default_factory=threading.current_thread)

    @property
    def is_running(self) -> bool:
        """Whether the loop may still run: whether the frame of `fit`, or the thread of a custom training loop, still exists."""
        if not self.thread.is_alive() or self.thread.ident is None:
            return False
        frame = sys._current_frames().get(self.thread.ident)
        while frame is not None and self.fit not in (None, id(frame)):
            frame = frame.f_back
        if frame is None or self.fit is None or self.iterator is None:
            return frame is not None
        iterator = self.iterator()
        return iterator is not None and frame.f_locals.get("epoch_iterator") is iterator

    def excludes(self, other: "Loop") -> bool:
        """Returns whether this loop still runs beside another. Custom training loops of one thread run one after the other."""
        is_another = self != other if self.fit is not None else self.thread != other.thread
        return is_another and self.is_running
