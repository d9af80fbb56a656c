"""`python -m callbacks report RUN`: shows where the time of a run went, over all its attempts, without TensorFlow."""

import json
import math
import os
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from callbacks import start_up
from callbacks.counting.batch_times import BatchTimes
from callbacks.errors import printable
from callbacks.report import record_file

PARTS = {  # name in JSON -> name and meaning on the screen
    "queue": ("queue", "before the process was started"),
    "start_up": ("start-up", "until the end of the first batch"),
    "training_kept": ("kept", "training that the model has"),
    "waiting_for_data": ("data", "waiting for data"),
    "blocked_by_saves": ("saves", "training stood still for saves"),
    "slower_beside_writes": ("slower", "batches took longer while a file was written"),
    "validation": ("valid.", "validation"),
    "other_callbacks": ("others", "all other callbacks"),
    "outside_training": ("outside", "before and after fit"),
    "training_lost": ("lost", "training that has to be repeated"),
}
START_UP = ("imports", "set-up", "data", "build", "restore", "trace")
_SHOWN = 20  # most attempts on the screen
_SILENT = 180.0  # seconds without a line after which a run on another host counts as ended
_SAME_PROCESS = 2.0  # largest difference of two readings of a process's start, in seconds


@dataclass
class Attempt:
    """One process of a run, according to its lines in the record.

    Args:
        lines: the lines of this process in their order; the first is `begin`.
        queue: seconds from the end of the previous attempt to the start of this one.
        kept_to: the last batch of this attempt that the model still has; None if it has all.

    Attributes:
        why: the reason of its end, or "running".
    """

    lines: list[dict[str, Any]]
    queue: float = 0.0
    kept_to: float | None = None
    why: str = field(init=False, default="")

    @property
    def began(self) -> float:
        """When the process was started, in seconds since 1970."""
        return self.lines[0]["began"]

    @property
    def last(self) -> dict[str, Any]:
        """The last line."""
        return self.lines[-1]

    def parts(self) -> dict[str, float]:
        """Returns the seconds of each part."""
        seconds, times = self.last["seconds"], BatchTimes(*(self.last[name] for name in ("batches", "beside", "sampled")))
        lost = times.training * self._share_lost()
        return {
            "queue": self.queue,
            "start_up": sum(self.start_up().values()),
            "training_kept": times.training - lost,
            "waiting_for_data": times.waiting + seconds.get("epochs", 0.0),
            "blocked_by_saves": seconds.get("blocked", 0.0),
            "slower_beside_writes": times.slower,
            "validation": seconds.get("validation", 0.0),
            "other_callbacks": seconds.get("callbacks", 0.0),
            "outside_training": seconds.get("outside", 0.0),
            "training_lost": lost,
        }

    def start_up(self) -> dict[str, float]:
        """Returns the seconds of each phase of the start-up."""
        return {name: self.last["seconds"][name] for name in START_UP if name in self.last["seconds"]}

    def _share_lost(self) -> float:
        """Returns the share of the training time after the last kept batch, interpolated between two lines by batches."""
        if self.kept_to is None or self.kept_to >= self.last["batch"] or not self.last["batches"][1]:
            return 0.0
        earlier = max((line for line in self.lines if line["batch"] <= self.kept_to), key=lambda line: line["batch"], default=None)
        if earlier is None:
            return 1.0
        later = min((line for line in self.lines if line["batch"] > self.kept_to), key=lambda line: line["batch"])
        share = (self.kept_to - earlier["batch"]) / (later["batch"] - earlier["batch"])
        kept = earlier["batches"][1] + share * (later["batches"][1] - earlier["batches"][1])
        return 1 - kept / self.last["batches"][1]


class Report:
    """Where the time of a run went.

    Args:
        path: the path of the record.
        now: the current time, in seconds since 1970.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, path: str, now: float):
        self.path = path
        by_name: dict[str, list] = {}
        for line in record_file.read(path):
            if line["kind"] == "begin" or line["attempt"] in by_name:  # without `begin`, a power cut has lost it
                by_name.setdefault(line["attempt"], []).append(line)
        self.attempts = sorted(map(Attempt, by_name.values()), key=lambda attempt: attempt.began)
        following, first_batch = None, math.inf  # of all later attempts
        for attempt in reversed(self.attempts):
            attempt.why = _why(attempt, now, following is not None)
            if following is not None:
                following.queue = max(following.began - attempt.last["time"], 0.0)
                first_batch = attempt.kept_to = min(first_batch, following.lines[0]["batch"])
            elif attempt.last["kind"] != "end" and attempt.why != "running":
                saved = attempt.last["saved"]
                attempt.kept_to = saved[0] if saved else 0
            following = attempt

    @property
    def wall(self) -> float:
        """Seconds from the start of the first process to the last line."""
        return self.attempts[-1].last["time"] - self.attempts[0].began

    def parts(self) -> dict[str, float]:
        """Returns the seconds of each part over all attempts."""
        of_each = [attempt.parts() for attempt in self.attempts]
        return {name: sum(parts[name] for parts in of_each) for name in PARTS}

    def start_up(self) -> dict[str, float]:
        """Returns the seconds of each start-up phase over all attempts."""
        of_each = [attempt.start_up() for attempt in self.attempts]
        return {name: sum(each.get(name, 0.0) for each in of_each) for name in START_UP if any(name in each for each in of_each)}

    def newest(self) -> dict[str, Any] | None:
        """Returns the newest checkpoint in the record and whether it still exists; None if there is none."""
        saved = [attempt.last["saved"] for attempt in self.attempts if attempt.last["saved"]]
        return {"batch": saved[-1][0], "path": saved[-1][1], "exists": os.path.exists(saved[-1][1])} if saved else None

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        parts = self.parts()
        return {
            "record": self.path,
            "wall_seconds": self.wall,
            "goodput": parts["training_kept"] / self.wall if self.wall else 0.0,
            "newest_checkpoint": self.newest(),
            **_summary(parts, self.start_up(), self.wall),
            "attempts": [
                {
                    "began": attempt.began,
                    "ended": attempt.last["time"],
                    "why": attempt.why,
                    "host": attempt.lines[0]["host"],
                    "first_batch": attempt.lines[0]["batch"],
                    "last_batch": attempt.last["batch"],
                    **_summary(attempt.parts(), attempt.start_up(), _wall(attempt)),
                }
                for attempt in self.attempts
            ],
        }

    def to_text(self) -> str:
        """Returns the report as text for the terminal."""
        newest, count = self.newest(), len(self.attempts)
        ended = datetime.fromtimestamp(self.attempts[-1].last["time"])
        checkpoint = "none" if newest is None else f"{newest['path']}, batch {newest['batch']}"
        if newest and not newest["exists"]:
            checkpoint += " (deleted since)"
        return "\n".join(
            [
                f"run         {os.path.dirname(self.path)}, {count} attempt{'' if count == 1 else 's'}",
                f"wall time   {_clock(self.wall)}, to {ended:%Y-%m-%d %H:%M:%S}",
                f"goodput     {_share(self.parts()['training_kept'], self.wall)} %",
                f"checkpoint  {checkpoint}",
                "",
                *self._rows_of_parts(),
                "",
                "of each attempt, in % of its time and the queue before it:",
                *self._rows_of_attempts(),
            ]
        )

    def _rows_of_parts(self):
        meanings = {name: meaning for name, (_, meaning) in PARTS.items()}
        phases = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in self.start_up().items())
        meanings["start_up"] += f": {phases}"
        for name, seconds in self.parts().items():
            yield f"{PARTS[name][0]:<10}{_clock(seconds):>9}{_share(seconds, self.wall):>7} %  {meanings[name]}"

    def _rows_of_attempts(self):
        """Yields a table of the newest attempts."""
        rows = [["", "began", "batches", "time", *(name for name, _ in PARTS.values()), "end"]]
        for i, attempt in list(enumerate(self.attempts, 1))[-_SHOWN:]:
            began, batches = datetime.fromtimestamp(attempt.began), f"{attempt.lines[0]['batch']}-{attempt.last['batch']}"
            shares = [_share(seconds, _wall(attempt)) for seconds in attempt.parts().values()]
            rows.append([str(i), f"{began:%m-%d %H:%M:%S}", batches, _clock(_wall(attempt)), *shares, attempt.why])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for *cells, end in rows:
            yield " ".join([*(f"{cell:>{width}}" for cell, width in zip(cells, widths[:-1], strict=True)), f" {end}"])
        if len(self.attempts) > _SHOWN:
            yield f"({len(self.attempts) - _SHOWN} earlier attempts are included in the sums; --json shows them)"


def run(directory_or_file: str, as_json: bool) -> str:
    """Returns the report on a run as text.

    Args:
        directory_or_file: the run's directory, or its record.
        as_json: whether the text is JSON.

    Raises:
        FileNotFoundError: if the run has no record.
    """
    path = os.path.expanduser(directory_or_file)
    path = os.path.join(path, record_file.NAME) if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"there is no {record_file.NAME} at {directory_or_file}. Add the callback RunRecord to a training; recipes have it."
        )
    report = Report(path, time.time())
    if not report.attempts:
        raise FileNotFoundError(f"{path} contains no attempt.")
    return json.dumps(report.to_json(), indent=1) if as_json else "\n".join(map(printable, report.to_text().split("\n")))


def _why(attempt: Attempt, now: float, has_later: bool) -> str:
    if attempt.last["kind"] == "end":
        return attempt.last["why"]
    if not has_later and _is_alive(attempt, now):
        return "running"
    return "killed"


def _is_alive(attempt: Attempt, now: float) -> bool:
    begin = attempt.lines[0]
    if begin["host"] != os.uname().nodename:
        return now - attempt.last["time"] < _SILENT
    began = start_up.process_began(begin["pid"])
    return began is not None and abs(began - begin["began"]) < _SAME_PROCESS


def _wall(attempt: Attempt) -> float:
    return attempt.queue + attempt.last["time"] - attempt.began


def _summary(parts: dict[str, float], start_up: dict[str, float], wall: float) -> dict[str, Any]:
    percent = {name: 100 * seconds / wall if wall else 0.0 for name, seconds in parts.items()}
    return {"wall_seconds": wall, "seconds": parts, "percent": percent, "start_up_seconds": start_up}


def _share(seconds: float, wall: float) -> str:
    return f"{100 * seconds / wall if wall else 0:.1f}"


def _clock(seconds: float) -> str:
    """Returns a duration as text: 4.2 s, 12:07, 3:12:07."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
