"""Decides which checkpoints to keep and which to delete."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A checkpoint, as the rules of retention see it.

    Args:
        path: the path of the file.
        batch: the batch counter in it.
        value: the monitored metric in it; None if it has none.
        finite: whether training can resume from it, since it contains no NaN and no infinite values.
    """

    path: str
    batch: int
    value: float | None = None
    finite: bool = True


def to_delete(
    present: Sequence[Kept],
    *,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: int | None = None,
    lower_is_better: bool = True,
) -> list[str]:
    """Returns the files that no rule keeps. Without a rule all stay. The newest and the newest finite file always stay.

    Args:
        present: the existing checkpoints, in any order.
        keep_last: the number of newest files to keep.
        keep_every: keeps the first file at or after each multiple of this number of batches.
        keep_best: the number of files with the best value to keep. Of equal values the older file is better. A file without a
            value is never best. As the only rule, it deletes nothing before a file has a value.
        lower_is_better: whether a lower value is better.

    Returns:
        The paths, oldest first.

    Example:

    >>> to_delete([Kept("a", 50), Kept("b", 100), Kept("c", 150), Kept("d", 200)], keep_last=1, keep_every=100)
    ['a', 'c']
    """
    if keep_last is None and keep_every is None and keep_best is None:
        return []
    ordered = sorted(present, key=lambda kept: kept.batch)
    stay = {kept.path for kept in ordered[-(keep_last or 1) :]}
    stay |= {kept.path for kept in [kept for kept in ordered if kept.finite][-1:]}
    if keep_every is not None:
        earlier = [0, *(kept.batch for kept in ordered)]
        stay |= {
            kept.path for kept, before in zip(ordered, earlier, strict=False) if kept.batch // keep_every > before // keep_every
        }
    if keep_best is not None:
        sign = 1 if lower_is_better else -1
        ranked = [
            (sign * kept.value, kept.batch, kept.path) for kept in ordered if kept.value is not None and not math.isnan(kept.value)
        ]
        if not ranked and keep_last is None and keep_every is None:
            return []  # no file is the best before the metric is logged
        stay |= {path for _, _, path in sorted(ranked)[:keep_best]}
    return [kept.path for kept in ordered if kept.path not in stay]
