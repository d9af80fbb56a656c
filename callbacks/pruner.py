"""Deletes the checkpoints that no rule of retention keeps."""

import os
from collections.abc import Callable, Mapping

from callbacks import retention
from callbacks.logged_metrics import scalar
from callbacks.restoring import own_checkpoints, read_stored
from callbacks.template import Template


class Pruner:
    """Deletes old checkpoints of one run after each save. It deletes only files whose name and content match the template.

    Args:
        template: the names of the checkpoints.
        keep: `keep_last`, `keep_every` and `keep_best`, the arguments of `retention.to_delete`.
        monitor: the metric that `keep_best` compares.
        lower_is_better: returns the direction of that metric; called only for `keep_best`.
        begins_at: the batch at which training began. Earlier files with later batches belong to another run.
    """

    def __init__(
        self,
        template: Template,
        keep: Mapping[str, int | None],
        monitor: str,
        lower_is_better: Callable[[], bool],
        begins_at: int,
    ):
        self._template, self._keep, self._monitor = template, keep, monitor
        self._lower_is_better, self._begins_at = lower_is_better, begins_at
        self._kept: dict[str, retention.Kept] | None = None

    def prune(self, path: str, batch: int, metrics: Mapping[str, float], finite: bool) -> None:
        """Deletes the files that no rule keeps after a save.

        Args:
            path: the path of the new checkpoint.
            batch: the batch counter in it.
            metrics: the metrics in it.
            finite: whether its values are finite.

        Raises:
            OSError: if a file cannot be deleted. The message names it.
        """
        if not any(self._keep.values()):
            return
        if self._kept is None:
            self._kept = self._find_earlier()
        self._kept[path] = self._candidate(path, batch, metrics, finite)
        lower = self._keep["keep_best"] is None or self._lower_is_better()
        for old in retention.to_delete(list(self._kept.values()), **self._keep, lower_is_better=lower):
            stored = read_stored(old)  # read again, since another program may have replaced the file
            if stored is not None and stored.is_made_by(self._template, old):
                _delete(old)
            del self._kept[old]

    def _find_earlier(self) -> dict[str, retention.Kept]:
        present = own_checkpoints(self._template)
        earlier = [(path, stored) for path, trailer, stored in present if trailer.batch <= self._begins_at]
        return {path: self._candidate(path, stored.counts.batch, stored.metrics, stored.finite) for path, stored in earlier}

    def _candidate(self, path: str, batch: int, metrics: Mapping[str, float], finite: bool) -> retention.Kept:
        return retention.Kept(path, batch, scalar(metrics.get(self._monitor)), finite)


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: the older checkpoint {path} cannot be deleted") from error
