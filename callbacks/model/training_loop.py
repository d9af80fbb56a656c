"""Identifies a training loop of this process, to find out whether it still runs."""

import gc
import threading
from types import FrameType


class Loop:
    """A training loop: a call of `fit`, or everything that a thread runs.

    Args:
        fit: the frame of `fit`, whose data stay in memory until the end of the loop is seen; None for a custom training loop.
        thread: the thread; by default this one. A later thread may get the same identifier.

    Attributes:
        is_fit: whether it is a call of `fit`.
    """

    def __init__(self, fit: FrameType | None = None, thread: threading.Thread | None = None):
        self.is_fit = fit is not None
        self._fit, self._thread, self._has_ended = fit, thread or threading.current_thread(), False

    @property
    def is_running(self) -> bool:
        """Whether the loop may still run: whether `fit` has not returned, or the thread of a custom training loop is alive.

        Any thread may ask. To walk the stack of another thread, in search of the frame, would not be safe: it changes meanwhile.
        """
        fit = self._fit
        if not self._thread.is_alive() or (fit is not None and _has_returned(fit)):
            self.end()
        return not self._has_ended

    def end(self) -> None:
        """Tells that the loop has ended, and forgets its frame. Repeated calls do nothing."""
        self._has_ended, self._fit = True, None

    def excludes(self, other: "Loop") -> bool:
        """Returns whether this loop still runs beside another. Custom training loops of one thread run one after the other."""
        is_another = self._fit is not other._fit if self.is_fit else self._thread is not other._thread
        return is_another and self.is_running


def _has_returned(call: FrameType) -> bool:
    """Returns whether a call has returned or failed. Only then does its frame own its code and variables (in CPython)."""
    return any(each is call.f_code for each in gc.get_referents(call))
