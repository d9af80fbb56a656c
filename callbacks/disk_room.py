"""Estimates the disk space that the checkpoints of a run need, and warns if there is too little."""

import contextlib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from callbacks import quota
from callbacks.keras_private import native_variable
from callbacks.snapshot import size_of
from callbacks.state_tree import StateTree
from callbacks.template import Template


@dataclass(frozen=True)
class DiskRoom:
    """The disk space that the checkpoints of a run need.

    Args:
        template: the names of the checkpoints.
        keep: the rules of retention, the arguments of `retention.to_delete`.
        saves: the largest number of checkpoints to come; infinity if unknown.
        batches: the number of batches to come; infinity if unknown.
    """

    template: Template
    keep: Mapping[str, int | None]
    saves: float
    batches: float

    @property
    def most_files(self) -> float:
        """The largest number of files at one time, including the one being written; infinity if unknown.

        Example:

        >>> DiskRoom(Template("m_{batch}.keras"), {"keep_last": 3, "keep_every": 100}, saves=50, batches=1000).most_files
        14
        """
        if not self.template.counters:
            return 2
        rules = {name: count for name, count in self.keep.items() if count is not None}
        if not rules:
            return self.saves
        kept: float = rules.get("keep_last", 1) + rules.get("keep_best", 0)
        if "keep_every" in rules:
            kept += self.batches // rules["keep_every"]
        return min(self.saves, kept + 1)

    def warn(self, size: int) -> None:
        """Warns if the disk has no room for the checkpoints to come. A disk that does not answer is left to the save.

        Args:
            size: the size of one checkpoint, in bytes.
        """
        with contextlib.suppress(OSError):
            self._warn(size)

    def _warn(self, size: int) -> None:
        has_rule, present = any(self.keep.values()), len(self.template.files())
        count = self.most_files - (present if has_rule else 0)
        files = max(count if math.isfinite(count) else 2, 1)
        on_disk, under_quota = _free(self.template.directory), quota.bytes_left(self.template.directory)
        free, what = min((on_disk, "disk"), (under_quota, "quota"))
        if files * size <= free:
            return
        at_least = "" if math.isfinite(count) else "at least "
        warnings.warn(
            f"The {what} of {self.template.directory} has {in_units(free)} free, but the checkpoints of this run need {at_least}"
            f"{in_units(files * size)} more: {files:.0f} files of {in_units(size)}. Free some space, save less often, or keep "
            "fewer files (keep_last).",
            stacklevel=3,
        )


def state_size(model: keras.Model) -> int:
    """Returns the total size of the variables in a checkpoint of a model, in bytes: nearly the size of the file."""
    return sum(size_of(native_variable(v)) for v in StateTree(model).variables.values())


def in_units(size: float) -> str:
    """Returns a number of bytes as text.

    >>> in_units(1_234_000_000)
    '1.23 GB'
    """
    unit = next((unit for unit, name in _UNITS if size >= unit), 1e3)
    return f"{size / unit:.3g} {dict(_UNITS)[unit]}"


_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _free(directory: str) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize
