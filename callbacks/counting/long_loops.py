"""Bounds the loops whose length a checkpoint determines, since anybody may have written the checkpoint."""

import time
import warnings
from collections.abc import Callable, Iterator

from callbacks.errors import InputError

UNNAMED = "the checkpoint"  # for messages, if its path is unknown
_MEASURED, _FEWEST = 2.0, 10  # seconds and steps after which the rest of a loop is estimated
_WORTH_A_WARNING = 30.0  # seconds
_DAY = 86_400.0  # seconds
_LONGEST = 30 * _DAY  # nobody waits longer for a resume


def bounded(count: int, what: str, path: str, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Yields the numbers below `count`, and measures how long the caller takes for each.

    A warning says how long a long loop takes. A loop that would take over a month is refused after two seconds. The first step does
    not count, since data may fill its buffers then.

    Args:
        count: the length of the loop, from a checkpoint.
        what: what the loop does, with the number, for messages: `"reads 5 batches again"`.
        path: the path of the checkpoint, for messages.
        clock: returns seconds since any fixed moment.

    Raises:
        InputError: if the loop would take too long.
    """
    began, is_measured = clock(), False
    for done in range(count):
        yield done
        if is_measured:
            continue
        if done == 0:
            began = clock()
        if (seconds := clock() - began) < _MEASURED or done < _FEWEST:
            continue
        is_measured = True
        left = seconds / done * (count - done - 1)
        if left > _LONGEST:
            raise InputError(
                f"Cannot resume from {path}: a resume {what}, which would take {left / _DAY:.3g} days here. Its counters are not "
                "those of a training on this data. Resume with the data of its run, or from another checkpoint."
            )
        if left > _WORTH_A_WARNING:
            warnings.warn(f"The resume from {path} {what}, which takes about {_shown(left)} more.", stacklevel=3)


def _shown(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds / 60:.1f} min"
