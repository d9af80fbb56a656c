"""Which checkpoints stay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A checkpoint in the eyes of the rules.

    Args:
        path: where it is.
        batch: the batch stored in it.
        value: the monitored metric stored in it; None where it has none.
        finite: whether training can go on from it: its values are neither NaN nor infinite.
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
    """The files that no rule keeps. Without a rule all stay; the newest always stays, and so does the newest finite one.

    Args:
        present: the checkpoints that are there, in any order.
        keep_last: keeps that many of the newest.
        keep_every: keeps the first at or after each multiple of that many batches.
        keep_best: keeps that many with the best value; of equal ones the older; one without a value is never best. As the only
            rule, it deletes nothing until one has a value.
        lower_is_better: the direction of the value.

    Returns:
        Paths, oldest first.

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
            return []  # nothing can be the best before the metric comes
        stay |= {path for _, _, path in sorted(ranked)[:keep_best]}
    return [kept.path for kept in ordered if kept.path not in stay]
