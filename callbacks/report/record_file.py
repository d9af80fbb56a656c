"""The record of a run: where its time went, as one JSON object per line. Each process of the run appends lines.

A process appends `begin` when training begins, `tick` from time to time, and `end` when it exits. A reader skips a last line that a
kill or a power cut has left incomplete.

| key | in | meaning |
|---|---|---|
| `kind` | all | `begin`, `tick` or `end` |
| `attempt` | all | a unique name of the process |
| `time` | all | when the line was written, in seconds since 1970 |
| `batch` | all | the batch counter, over all attempts |
| `began` | begin | when the process was started, in seconds since 1970 |
| `host`, `pid` | begin | the host and the process id |
| `seconds` | all | name -> seconds of this attempt so far; they add up to `time - began` |
| `batches` | all | `[count, seconds]` of the batches after the first, which is compiled |
| `beside` | all | the same for the batches during which a checkpoint was being written |
| `sampled` | all | `[seconds waiting for data, seconds of the batches]` for a sample of batches, without the first of each epoch |
| `saved` | all | `[batch, path]` of the newest checkpoint; null if there is none |
| `why` | end | the reason of the end |
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

NAME = "record.jsonl"


def create(path: str) -> None:
    """Creates the file and its directory, or ends the last line of an existing file.

    Raises:
        OSError: if nothing can be written there.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def append(path: str, line: Mapping[str, Any], *, flush: bool = False) -> None:
    """Appends a line. After the return a kill does not lose it.

    Args:
        path: the file. It is not created again if it is missing.
        line: plain data.
        flush: whether to wait for the disk, so that a power cut does not lose the line either.

    Raises:
        OSError: if it cannot be written.
    """
    text = json.dumps(line, separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, text.encode())
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of the file.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        for text in file:
            with contextlib.suppress(ValueError, RecursionError):  # an incomplete line
                line = json.loads(text)
                if _is_line(line):
                    yield line


def _is_line(line: Any) -> bool:
    """Returns whether a line has the keys of its kind, with values of their types."""
    if not isinstance(line, dict) or line.get("kind") not in ("begin", "tick", "end"):
        return False
    wanted = _TYPES | {"begin": _OF_BEGIN, "end": _OF_END}.get(line["kind"], {})
    return all(has_type(line.get(key)) for key, has_type in wanted.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST  # and not NaN


def _is_time(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_pid(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_two_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _are_seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_saved(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and _is_text(value[1]))


_LARGEST = 1e11  # seconds: the year 5138, which `datetime` still knows; and more batches than a run has
_TYPES: dict[str, Callable[[Any], bool]] = {
    "attempt": _is_text,
    "time": _is_time,
    "batch": _is_number,
    "seconds": _are_seconds,
    "batches": _are_two_numbers,
    "beside": _are_two_numbers,
    "sampled": _are_two_numbers,
    "saved": _is_saved,
}
_OF_BEGIN: dict[str, Callable[[Any], bool]] = {"began": _is_time, "host": _is_text, "pid": _is_pid}
_OF_END: dict[str, Callable[[Any], bool]] = {"why": _is_text}
