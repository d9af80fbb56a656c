"""Profiles a range of global batches for TensorBoard."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from callbacks.counting.counters import Counters
from callbacks.errors import InputError
from callbacks.ranks import ranks


class BatchProfiler:
    """Profiles a range of global batches once, on some ranks; the chief writes the profiles.

    Args:
        first, last: the range of global batches; 0 for no profile.
        profiled_ranks: the ranks to profile.

    Raises:
        InputError: if the run has no such rank.
    """

    def __init__(self, first: int, last: int, profiled_ranks: Sequence[int]):
        if not set(profiled_ranks) <= set(range(ranks().size)):
            raise InputError(f"profile_ranks must be ranks of this run, 0 to {ranks().size - 1}. Received: {list(profiled_ranks)}")
        self._first, self._last, self._ranks = first, last, profiled_ranks
        self._is_done = last == 0
        self._running: tempfile.TemporaryDirectory | None = None

    def begin_batch(self, counters: Counters) -> None:
        """Starts the profile if the next batch is in the range. Call it before each batch."""
        if self._is_done or self._running or not counters.reached(self._first - 1):
            return
        if counters.reached(self._last):
            self._is_done = True  # before a restart
            return
        self._running = tempfile.TemporaryDirectory()
        if ranks().rank in self._ranks:
            tf.profiler.experimental.start(self._running.name)

    def has_ended(self, counters: Counters) -> bool:
        """Returns whether the last batch of the range is done: `take` is then due."""
        return self._running is not None and counters.reached(self._last)

    @property
    def is_running(self) -> bool:
        """Whether a profile is running."""
        return self._running is not None

    def take(self) -> dict[str, bytes]:
        """Ends the profile and returns the contents of its files, by name. All ranks must call it."""
        assert self._running is not None
        profile = b""
        if ranks().rank in self._ranks:
            tf.profiler.experimental.stop()
            profile = next(Path(self._running.name).rglob("*.xplane.pb")).read_bytes()
        self._running.cleanup()
        self._running, self._is_done = None, True
        profiles = ranks().gather(np.frombuffer(profile, "uint8"))
        return {f"rank-{rank}.xplane.pb": profiles[rank].tobytes() for rank in self._ranks}
