"""`python -m callbacks list|verify|report`: lists checkpoints, verifies them, and reports where the time of a run went."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from callbacks import files
from callbacks.errors import InputError, one_line
from callbacks.restoring import Checkpoint, candidates, of_run, read_stored, read_verified


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table. Returns 1 if `verify` finds a corrupt file, 2 for bad input, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m callbacks", description="Lists and verifies checkpoints, and reports where the time of a run went."
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
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not paths:
        print(f"error: no checkpoints at {args.template_or_directory}", file=sys.stderr)
        return 2
    corrupt = 0
    print(f"{'batch':>10} {'step':>10} {'epoch':>6} {'samples':>12} {'MB':>10} {'finite':>6}  file")
    for path, trailer, why in sorted(
        _look(paths, args.command == "verify"), key=lambda row: (row[1].batch if row[1] else -1, row[0])
    ):
        corrupt += trailer is None
        if trailer is None:
            print(f"{'-':>10} {'-':>10} {'-':>6} {'-':>12} {'-':>10} {'-':>6}  {path}: {why}")
        else:
            size, stored = os.path.getsize(path) / 1e6, read_stored(path)
            finite = "-" if stored is None else "yes" if stored.finite else "NO"
            counts = f"{trailer.batch:>10} {trailer.step:>10} {trailer.epoch:>6} {trailer.samples:>12}"
            print(f"{counts} {size:>10.2f} {finite:>6}  {path}")
    if args.command == "verify":
        print(f"{len(paths)} files, {corrupt} corrupt" if corrupt else f"{len(paths)} files, all intact")
    return 1 if corrupt and args.command == "verify" else 0


def _report(directory: str, as_json: bool) -> int:
    from callbacks import report

    try:
        print(report.run(directory, as_json))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _look(paths: list[str], verify: bool) -> Iterator[tuple[str, Checkpoint | files.Trailer | None, str]]:
    for path in paths:
        try:
            yield path, read_verified(path) if verify else files.read_trailer(path), ""
        except (files.Corrupt, InputError, OSError) as error:
            yield path, None, one_line(error)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this process without a message
    sys.exit(main())
