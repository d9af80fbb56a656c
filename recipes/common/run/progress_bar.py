"""Progress of a run: a progress bar on a terminal, or a dated line every few seconds in a file."""

import atexit
import os
import sys
import time
from datetime import datetime, timedelta
from typing import TextIO

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from callbacks import Counts, GlobalStepCheckpoint, counters_of
from recipes.common.distribution import Distribution

_REDRAW_SECS = 0.2
_BAR_WIDTH = 12
_LEFT_OUT_FIRST = ("saved", "speed", "epoch", "left", "val_loss")  # on a narrow terminal, in this order


class ProgressBar(keras.callbacks.Callback):
    """Shows the progress of training, on the chief. Keras's own bar restarts in each epoch, so pass `verbose=0` to `fit`.

    Args:
        distribution: the replicas.
        checkpoint: the checkpoint callback of the run.
        batches_per_epoch: global batches in an epoch.
        log_secs: seconds between two lines, if the output is not a terminal.
        output: standard output by default.
    """

    def __init__(
        self,
        distribution: Distribution,
        checkpoint: GlobalStepCheckpoint,
        batches_per_epoch: int,
        log_secs: float,
        output: TextIO | None = None,
    ):
        super().__init__()
        self._checkpoint, self._batches_per_epoch, self._log_secs = checkpoint, batches_per_epoch, log_secs
        self._output = output or sys.stdout
        self._prints = distribution.is_chief
        self._clock, self._now = time.monotonic, datetime.now
        self._bar: Progress | None = None
        self._began_at: Counts | None = None  # after the first batch, which TensorFlow traces
        self._began = self._next = 0.0  # when the second batch began, and when to print next
        self._total = 0  # batches
        self._metrics: dict[str, float] = {}

    def on_train_begin(self, logs=None):
        self._began_at, self._total, self._metrics = None, 0, {}

    def on_epoch_begin(self, epoch, logs=None):
        if self._prints and not self._total:
            self._begin()

    def on_train_batch_end(self, batch, logs=None):
        if self._prints:
            self._metrics |= logs or {}
            if self._began_at is None:
                self._began_at, self._began = counters_of(self.model).read(), self._clock()
            elif self._clock() >= self._next:
                self._print()

    def on_epoch_end(self, epoch, logs=None):
        self._metrics |= logs or {}

    def on_train_end(self, logs=None):
        if self._prints and self._began_at is not None:
            self._print()
        self.close()

    def close(self) -> None:
        """Restores the terminal, also after a failure."""
        if self._bar:
            self._bar.stop()
            atexit.unregister(self.close)
            self._bar = None

    def _begin(self):
        self._total = self.params["epochs"] * self._batches_per_epoch
        self._next = self._clock() + (_REDRAW_SECS if self._output.isatty() else self._log_secs)
        if self._output.isatty():
            console = Console(file=self._output)
            self._bar = Progress(
                BarColumn(bar_width=_BAR_WIDTH), TextColumn("{task.description}"), console=console, auto_refresh=False
            )
            self._bar.add_task("", total=self._total, completed=counters_of(self.model).read().batch)
            self._bar.start()
            atexit.register(self.close)

    def _print(self):
        counts = counters_of(self.model).read()
        self._next = self._clock() + (_REDRAW_SECS if self._bar else self._log_secs)
        parts = dict(self._parts(counts))
        if self._bar:
            text = _fitting(parts, self._bar.console.width - _BAR_WIDTH - 1)
            self._bar.update(self._bar.task_ids[0], completed=counts.batch, description=text, refresh=True)
        else:
            print(f"{self._now():%Y-%m-%d %H:%M:%S}  {', '.join(parts.values())}", file=self._output, flush=True)

    def _parts(self, counts):
        assert self._began_at is not None
        yield "batch", f"batch {counts.batch} of {self._total}"
        seconds, trained = self._clock() - self._began, counts.batch - self._began_at.batch
        if trained and seconds > 0:
            yield "speed", f"{(counts.samples - self._began_at.samples) / seconds:.0f} samples/s"
            yield "left", f"{timedelta(seconds=round(seconds / trained * max(self._total - counts.batch, 0)))} left"
        if self._checkpoint.newest:
            yield "saved", f"saved {os.path.basename(self._checkpoint.newest).split('.')[0]}"
        yield from ((name, f"{name} {value:.4f}") for name, value in self._metrics.items() if name in ("loss", "val_loss"))
        yield "epoch", f"epoch {counts.epoch}"


def _fitting(parts: dict[str, str], width: int) -> str:
    """Returns as many parts as fit into a line of the terminal."""
    for name in _LEFT_OUT_FIRST:
        if len(", ".join(parts.values())) > width:
            parts.pop(name, None)
    return ", ".join(parts.values())
