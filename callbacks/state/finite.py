"""Checks whether training can resume from a snapshot: its values must be finite."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from callbacks.state.snapshot import Snapshot, to_host

_AT_ONCE = 1 << 18  # values, few enough for a core's cache


def first_not_finite(snapshot: Snapshot) -> str | None:
    """Finds a variable with NaN or infinite values.

    Variables of an optimizer and variables that it updates must be finite. Others (statistics, masks) may be infinite, but not NaN.
    Running metrics are ignored, since the next epoch resets them.

    Args:
        snapshot: a snapshot with all values in host memory.

    Returns:
        The path of the first such variable, as Keras shows it; None if there is none.
    """
    header = snapshot.header
    metrics, optimizers = set(header["metrics_variables"]), header["optimizers"]
    updated = {name for optimizer in optimizers.values() for name in optimizer["updates"]}
    of_optimizers = tuple(f"{name}." for name in optimizers)
    for name, value in _named_values(snapshot):
        if name in metrics:
            continue
        is_updated = name in updated or name.startswith(of_optimizers)
        if not (_all_finite(value) if is_updated else _none_is_nan(value)):
            return header["variables"][name][2] if name else "a layer"
    return None


def _named_values(snapshot: Snapshot) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and value of each variable; an empty name for values that a layer computes for the file."""
    for group in snapshot.groups:
        yield from ((group.variables.get(key, ""), np.asarray(to_host(value))) for key, value in group.values.items())
    for name, parts in snapshot.beside.items():
        yield from ((name, np.asarray(to_host(part))) for part in parts)


def _all_finite(value: np.ndarray) -> bool:
    return all(np.isfinite(part).all() for part in _parts(value))


def _none_is_nan(value: np.ndarray) -> bool:
    return not any(np.isnan(part).any() for part in _parts(value))


def _parts(value: np.ndarray) -> Iterator[np.ndarray]:
    if not _has_fractions(value.dtype):
        return
    flat = value.reshape(-1)
    for begin in range(0, flat.size, _AT_ONCE):
        yield flat[begin : begin + _AT_ONCE]


def _has_fractions(dtype: np.dtype) -> bool:
    if dtype.kind != "V":
        return dtype.kind in "fc"
    try:
        return bool(ml_dtypes.finfo(dtype))  # bfloat16, float8
    except ValueError:  # int4
        return False
