"""The event files of one run: opens them, marks where a restart begins, and writes the curves."""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from callbacks import start_up
from callbacks.counting.logged_metrics import scalar
from callbacks.counts import Counts
from callbacks.curves import event_files
from callbacks.curves.event_files import EventFile
from callbacks.curves.step_statistics import ratio
from callbacks.curves.tags import describe, hparams_summary


class RunEvents:
    """The event files of one run, which the chief writes: `batches`, `train` and `validation`.

    Args:
        directory: TensorBoard's directory of the run.
        clock: returns seconds since 1970.
    """

    def __init__(self, directory: str, clock: Callable[[], float] = time.time):
        self._directory, self._clock = directory, clock
        self._files: dict[str, EventFile] = {}
        self._evaluation: EventFile | None = None  # where no `fit` has opened one
        self._left_out: set[str] = set()  # logs that no curve can show
        self._restarts, self._run_began = 0, math.inf

    @property
    def is_open(self) -> bool:
        """Whether `open` was called."""
        return bool(self._files)

    def open(self, validates: bool) -> bool:
        """Opens the files, and returns whether this is the first attempt of the run.

        Args:
            validates: whether the training has validation data.

        Raises:
            InputError: if nothing can be written there.
        """
        is_first = event_files.is_empty(self._path("batches"))
        names = ["batches", "train"]
        if validates or not event_files.is_empty(self._path("validation")):
            names.append("validation")
        self._files = {name: EventFile(self._path(name), describe) for name in names}
        return is_first

    def write_hparams(self, hparams: Mapping[str, float | str | bool]) -> None:
        """Writes the hyperparameters in place of those of earlier attempts."""
        if hparams:
            now = self._clock()
            event_files.replace_summary(self._directory, describe, hparams_summary(hparams, now), now)

    def begin(self, counts: Counts) -> None:
        """Makes TensorBoard discard the events of earlier attempts after these counts, and counts the attempts."""
        began = min(start_up.began(), self._clock())
        within_epoch = counts.batches_in_epoch > 0
        for name, file in self._files.items():
            # An earlier attempt may have ended the epoch after the checkpoint: then this one ends it again.
            file.begin(counts.batch if within_epoch and name != "batches" else counts.batch + 1, began)
        attempts = event_files.attempts(self._path("batches"))
        self._restarts = max(len(attempts) - 1, 0)
        self._run_began = min(attempts.values(), default=began)

    def file(self, name: str) -> EventFile:
        """Returns the file of a name; outside `fit`, the file of an evaluation."""
        if name in self._files:
            return self._files[name]
        if self._evaluation is None:
            self._evaluation = EventFile(self._path("validation"), describe)
        return self._evaluation

    def run_values(self, kept_seconds: float) -> dict[str, float]:
        """Returns the curves of the whole run.

        Args:
            kept_seconds: the seconds of training on the batches that the model has.
        """
        return {"run/restarts": self._restarts, "run/goodput": ratio(kept_seconds, self._clock() - self._run_began)}

    def numbers(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Returns the logs that a curve can show, and warns once of those that no curve can show."""
        numbers = {str(name): scalar(value) for name, value in logs.items()}
        left_out = {name for name, number in numbers.items() if number is None} - self._left_out
        if left_out:
            self._left_out |= left_out
            warnings.warn(f"No curves of {', '.join(sorted(left_out))}: a curve shows one number at each step.", stacklevel=3)
        return {name: number for name, number in numbers.items() if number is not None}

    def write_point(self, batch: int, values: Mapping[str, float]) -> None:
        """Writes a point to each curve of `batches`."""
        self._files["batches"].scalars(batch, self._clock(), values)

    def write_epoch(self, batch: int, logs: Mapping[str, Any]) -> None:
        """Writes a point to each curve of `train` and `validation`.

        Args:
            batch: the batch counter at the end of the epoch.
            logs: the logs of the epoch; those of the validation begin with `val_`.
        """
        numbers, now = self.numbers(logs), self._clock()
        of_validation = {name: value for name, value in numbers.items() if name.startswith("val_")}
        of_training = {name: value for name, value in numbers.items() if name not in of_validation}
        self._files["train"].scalars(batch, now, {f"epoch_{name}": value for name, value in of_training.items()})
        if of_validation:
            values = {f"epoch_{name.removeprefix('val_')}": value for name, value in of_validation.items()}
            self._files["validation"].scalars(batch, now, values)

    def write_evaluation(self, batch: int, logs: Mapping[str, Any]) -> None:
        """Writes the results of an `evaluate` outside `fit`. Points of other attempts stay."""
        values = {f"evaluation_{name}_vs_iterations": value for name, value in self.numbers(logs).items()}
        self.file("validation").scalars(batch, self._clock(), values)

    def write_profiles(self, session: str, profiles: Mapping[str, bytes]) -> None:
        """Writes profiles for TensorBoard.

        Args:
            session: TensorBoard's name for these profiles.
            profiles: name of a file -> its content.
        """
        if self._files["batches"].is_lost:
            return
        folder = Path(self._path("batches"), "plugins", "profile", session)
        folder.mkdir(parents=True, exist_ok=True)
        for name, profile in profiles.items():
            (folder / name).write_bytes(profile)

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)
