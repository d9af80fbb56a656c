"""One screen that says why a run failed: the first failure, its last words, and what became of the others."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass

from launch import exit_codes
from launch.messages import ExitRecord, RankExited

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


def failure_of(host: str, event: RankExited) -> Failure:
    """The failure of a rank of this host that ended with a code other than 0."""
    record = event.record
    line = f"rank {record.rank} on {host}: {ending(record.code)}{'; out of memory?' if event.out_of_memory else ''}"
    return Failure(line, exit_codes.of_process(record.code), record.rank, event.tail, record.log, record.batch)


def ending(code: int) -> str:
    """How a process ended, in words. Args: code: negative for a signal, as in `subprocess`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def screen(failure: Failure, ended: Iterable[tuple[str, ExitRecord]]) -> str:
    """The whole report.

    Args:
        failure: the first.
        ended: the host of every rank, and how it ended.
    """
    ended = sorted(ended, key=lambda each: each[1].rank)
    lines = [failure.line]
    lines += ["    " + line for line in last_words(failure.tail)]
    if failure.rank is not None:
        lines.append(f"  last batch  {_batch(failure.batch)}")
        lines.append(f"  log         {failure.log}")
    lines += [f"  log of rank {record.rank} lacks {record.lost} bytes" for _, record in ended if record.lost][:MOST_GROUPS]
    others = [(host, record) for host, record in ended if record.rank != failure.rank]
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


def _groups(ended):
    """One line for all ranks of a node that ended in the same way at the same batch."""
    groups: dict[tuple, list[int]] = {}
    for host, record in ended:
        groups.setdefault((host, record.code, record.batch), []).append(record.rank)
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
