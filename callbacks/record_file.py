"""The file that tells where the hours of a run went: one JSON object in a line, appended by one process after the other.

A process appends `begin` when training begins, `tick` now and then, and `end` when it leaves. What a kill or a power cut leaves
of a last line is passed over.

| key | in | what |
|---|---|---|
| `kind` | all | `begin`, `tick` or `end` |
| `attempt` | all | a name for the process, of its own |
| `time` | all | when the line was written, in seconds since 1970 |
| `batch` | all | global batches trained on, over all attempts |
| `began` | begin | when the process was started, in seconds since 1970 |
| `host`, `pid` | begin | where it runs |
| `seconds` | all | name -> seconds of this attempt so far; they add up to `time - began` |
| `batches` | all | `[batches, seconds]` of those after the first, which is compiled |
| `beside` | all | the same, of those beside which a checkpoint was being written |
| `sampled` | all | `[seconds waiting for data, seconds of the batches]`, of a sample |
| `saved` | all | `[batch, path]` of the newest checkpoint; null while there is none |
| `why` | end | what ended the attempt |
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

NAME = "record.jsonl"


def create(path: str) -> None:
    """Makes the file and its directory, or ends a line that a kill has cut short.

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
    """Adds a line. On return it has left the process: a kill does not lose it.

    Args:
        path: the file, which is never made again.
        line: numbers, texts, lists and dicts.
        flush: whether to wait for the disk, so that a power cut does not lose it either.

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
    """Yields the whole lines of the file.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        for text in file:
            with contextlib.suppress(ValueError):  # cut short
                line = json.loads(text)
                if isinstance(line, dict) and line.get("kind") in ("begin", "tick", "end"):
                    yield line
