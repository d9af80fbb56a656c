"""The report on a failed run: the first failure, the last output of that rank, and how the others ended."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass

from launch import exit_codes
from launch.network.messages import ExitRecord, RankExited

TRACEBACK = "Traceback (most recent call last):"
CRASH = "Fatal Python error:"  # printed by faulthandler, below the message of the library that crashed
ABOVE_CRASH = 3  # lines of that message
MOST_LINES = 24  # of a traceback
WITHOUT_TRACEBACK = 10  # lines to show if there is no traceback
MOST_GROUPS = 8  # lines for the other ranks


@dataclass(frozen=True)
class Failure:
    """The first failure of a run.

    Args:
        line: what failed, where and how.
        code: the exit code for the run.
        rank: the rank that failed; None if a node failed.
        tail: the end of the rank's output.
        log: the path of the rank's log.
        batch: the last batch that the rank reported.
    """

    line: str
    code: int
    rank: int | None = None
    tail: str = ""
    log: str = ""
    batch: int | None = None


def failure_of(host: str, event: RankExited) -> Failure:
    """Returns the failure of a rank on this host that ended with a code other than 0."""
    record = event.record
    line = f"rank {record.rank} on {host}: {describe_end(record.code)}{'; out of memory?' if event.out_of_memory else ''}"
    return Failure(line, exit_codes.of_process(record.code), record.rank, event.tail, record.log, record.batch)


def describe_end(code: int) -> str:
    """Returns how a process ended, in words.

    Args:
        code: the return code as in `subprocess`, negative for a signal.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def format_report(failure: Failure, ended: Iterable[tuple[str, ExitRecord]]) -> str:
    """Returns the complete report.

    Args:
        failure: the first failure.
        ended: the host and the exit record of every rank.
    """
    ended = sorted(ended, key=lambda each: each[1].rank)
    lines = [failure.line]
    lines += ["    " + line for line in last_output(failure.tail)]
    if failure.rank is not None:
        lines.append(f"  last batch  {_batch(failure.batch)}")
        lines.append(f"  log         {failure.log}")
    lines += [f"  log of rank {record.rank} lacks {record.lost} bytes" for _, record in ended if record.lost][:MOST_GROUPS]
    others = [(host, record) for host, record in ended if record.rank != failure.rank]
    if others:
        lines.append("  others")
        lines += [f"    {line}" for line in _groups(others)]
    return "\n".join(lines)


def last_output(tail: str) -> list[str]:
    """Returns the last traceback in the output of a rank, or its last lines if there is none."""
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
    """Yields one line for all ranks of a node that ended in the same way at the same batch."""
    groups: dict[tuple, list[int]] = {}
    for host, record in ended:
        groups.setdefault((host, record.code, record.batch), []).append(record.rank)
    for (host, code, batch), ranks in list(groups.items())[:MOST_GROUPS]:
        noun = "rank" if len(ranks) == 1 else "ranks"
        yield f"{noun} {_ranges(ranks)} on {host}: {describe_end(code)}, last batch {_batch(batch)}"
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
