"""One screen that says why a run failed: the first failure, its last words, and what became of the others."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from launch import exit_codes

TRACEBACK = "Traceback (most recent call last):"
CRASH = "Fatal Python error:"  # faulthandler's; what the crashing library said stands above it
ABOVE_CRASH = 3  # lines
MOST_LINES = 24  # of a traceback
WITHOUT_TRACEBACK = 10  # last lines of a rank that left none
MOST_GROUPS = 8  # lines for the others


@dataclass(frozen=True)
class Failure:
    """What ended a run first.

    Args:
        line: who, where and how.
        code: the exit code that the run gets from it.
        rank: whose failure it is; None: a node's.
        tail: the end of its output.
        log: where all of its output is.
        batch: the last batch that it reported.
    """

    line: str
    code: int
    rank: int | None = None
    tail: str = ""
    log: str = ""
    batch: int | None = None


def failure_of(story: dict[str, Any]) -> Failure:
    """The failure of a rank that ended with a code other than 0."""
    code = story["code"]
    line = f"rank {story['rank']} on {story['host']}: {ending(code)}{'; out of memory?' if story['out_of_memory'] else ''}"
    return Failure(line, exit_codes.of_process(code), story["rank"], story["tail"], story["log"], story["batch"])


def ending(code: int) -> str:
    """How a process ended, in words. Args: code: negative for a signal, as in `subprocess`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def screen(failure: Failure, stories: Iterable[dict[str, Any]]) -> str:
    """The whole report.

    Args:
        failure: the first.
        stories: how every rank ended: rank, host, code, batch, log, lost.
    """
    stories = sorted(stories, key=lambda story: story["rank"])
    lines = [failure.line]
    lines += ["    " + line for line in last_words(failure.tail)]
    if failure.rank is not None:
        lines.append(f"  last batch  {_batch(failure.batch)}")
        lines.append(f"  log         {failure.log}")
    lines += [f"  log of rank {story['rank']} lacks {story['lost']} bytes" for story in stories if story["lost"]][:MOST_GROUPS]
    others = [story for story in stories if story["rank"] != failure.rank]
    if others:
        lines.append("  others")
        lines += [f"    {line}" for line in _groups(others)]
    return "\n".join(lines)


def last_words(tail: str) -> list[str]:
    """The last traceback of a rank's output, or else its last lines."""
    lines = tail.splitlines()
    lines = [line for line in lines if not line.startswith("Extension modules: ")]
    starts = [number for number, line in enumerate(lines) if TRACEBACK in line]
    starts += [max(0, number - ABOVE_CRASH) for number, line in enumerate(lines) if CRASH in line]
    if not starts:
        return lines[-WITHOUT_TRACEBACK:]
    found = lines[max(starts) :]
    if len(found) > MOST_LINES:
        found = [found[0], "  ...", *found[2 - MOST_LINES :]]
    return found


def _groups(stories):
    """One line for all ranks of a node that ended in the same way at the same batch."""
    groups: dict[tuple, list[int]] = {}
    for story in stories:
        groups.setdefault((story["host"], story["code"], story["batch"]), []).append(story["rank"])
    for (host, code, batch), ranks in list(groups.items())[:MOST_GROUPS]:
        yield f"{'rank' if len(ranks) == 1 else 'ranks'} {_ranges(ranks)} on {host}: {ending(code)}, last batch {_batch(batch)}"
    if len(groups) > MOST_GROUPS:
        yield f"and {sum(map(len, list(groups.values())[MOST_GROUPS:]))} more"


def _ranges(numbers):
    """[0, 1, 2, 5] -> "0-2 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _batch(batch):
    return "none reported" if batch is None else str(batch)
