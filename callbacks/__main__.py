"""`python -m callbacks list|verify|report`: lists checkpoints, verifies them, and reports where the time of a run went."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from callbacks.disk import files
from callbacks.disk.listing import candidates, of_run
from callbacks.disk.stored import read_stored
from callbacks.errors import CheckpointReadError, InputError, one_line, printable
from callbacks.resuming.restoring import read_verified

_EXAMPLES = """\
examples:
  python -m callbacks list runs/mnist                             the checkpoints of a run, from their trailers
  python -m callbacks list "runs/mnist/checkpoints/model_batch_at_{batch:05d}.weights.h5"    those of one template
  python -m callbacks verify runs/mnist/checkpoints               reads every byte
  python -m callbacks report runs/mnist                           where the time of a run went, over all its restarts
  python -m callbacks report --json runs/mnist                    the same for programs

exit codes: 0 done; 1 verify has found a corrupt file; 2 bad input.
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, with exit code 2."""

    def error(self, message):
        self.exit(2, f"error: {message} (--help shows examples)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table. Returns 1 if `verify` finds a corrupt file, 2 for bad input, else 0."""
    parser = _Parser(
        prog="python -m callbacks",
        description="Lists and verifies checkpoints, and reports where the time of a run went.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=("list", "verify", "report"),
        help="list: shows checkpoints by their trailers; verify: reads every byte; report: shows where the time of a run went",
    )
    parser.add_argument(
        "template_or_directory",
        help="a template, a file, a directory of checkpoints, or the directory of a run; report takes the directory of a run",
    )
    parser.add_argument("--json", action="store_true", help="report: prints JSON")
    args = parser.parse_args(argv)
    if args.command == "report":
        return _report(args.template_or_directory, args.json)
    try:
        paths = candidates(of_run(args.template_or_directory))
    except (InputError, CheckpointReadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not paths:
        print(f"error: no checkpoints at {args.template_or_directory}", file=sys.stderr)
        return 2
    rows = sorted(_look(paths, args.command == "verify"), key=lambda row: (row.batch, row.path))
    corrupt = sum(row.batch < 0 for row in rows)
    print(f"{'batch':>10} {'step':>10} {'epoch':>6} {'samples':>12} {'MB':>10} {'finite':>6}  file")
    for row in rows:
        print(f"{row.columns}  {printable(row.path)}{row.why}")
    if args.command == "verify":
        found, intact = ("1 file", "intact") if len(rows) == 1 else (f"{len(rows)} files", "all intact")
        print(f"{found}, {f'{corrupt} corrupt' if corrupt else intact}")
    return 1 if corrupt and args.command == "verify" else 0


def _report(directory: str, as_json: bool) -> int:
    from callbacks.report import report

    try:
        print(report.run(directory, as_json))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class _Row(NamedTuple):
    path: str
    batch: int  # -1 if the file is corrupt
    columns: str
    why: str = ""


def _look(paths: list[str], verify: bool) -> Iterator[_Row]:
    for path in paths:
        try:
            trailer, size = read_verified(path) if verify else files.read_trailer(path), os.path.getsize(path) / 1e6
        except (files.Corrupt, InputError, OSError) as error:
            if os.path.lexists(path):  # else a run has deleted it meanwhile
                why = one_line(error).removeprefix(f"{path} ")  # the row names the file
                yield _Row(path, -1, f"{'-':>10} {'-':>10} {'-':>6} {'-':>12} {'-':>10} {'-':>6}", f": {why}")
            continue
        stored = read_stored(path)
        finite = "-" if stored is None else "yes" if stored.finite else "NO"
        counts = f"{trailer.batch:>10} {trailer.step:>10} {trailer.epoch:>6} {trailer.samples:>12}"
        yield _Row(path, trailer.batch, f"{counts} {size:>10.2f} {finite:>6}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this process without a message
    sys.exit(main())
