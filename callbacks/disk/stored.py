"""Reads what a checkpoint says of itself: its template, its counters, its metrics, and whether its values are finite."""

import contextlib
from dataclasses import dataclass

from callbacks.counts import Counts
from callbacks.disk import stored_header
from callbacks.disk.template import Template


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of itself.

    Args:
        template: the last part of the template that named it.
        counts: its counters.
        metrics: the newest value of each logged metric at the save.
        finite: whether it contains no NaN and no infinite values; True if the file does not say.
    """

    template: str
    counts: Counts
    metrics: dict[str, float]
    finite: bool

    def is_made_by(self, template: Template, path: str) -> bool:
        """Returns whether the file contains this template, and counters that result in this path."""
        return self.template == template.last_part and template.makes(path, self.counts)


def read_stored(path: str) -> Stored | None:
    """Returns what a checkpoint says of itself; None for a foreign, corrupt or unreadable file, or one of an unknown format."""
    with contextlib.suppress(OSError):
        return read_stored_or_raise(path)
    return None


def read_stored_or_raise(path: str) -> Stored | None:
    """Returns what a checkpoint says of itself; None for a foreign or corrupt file, or one of an unknown format.

    Raises:
        OSError: if the disk fails.
    """
    try:
        header = stored_header.read_header(path)
        return Stored(header["template"], Counts(**header["counts"]), header["metrics"], header.get("finite", True))
    except Exception as error:  # h5py, zipfile and json raise errors of many classes for a corrupt file
        if isinstance(error, OSError) and error.errno:
            raise
        return None
