"""`python -m callbacks list|verify|report`: what checkpoints there are, whether they are whole, and where a run's hours went."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from callbacks import files
from callbacks.errors import InputError, one_line
from callbacks.restoring import Checkpoint, candidates, read_stored, read_whole


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table. Returns 1 if `verify` finds a damaged file, 2 for bad input, else 0."""
    parser = argparse.ArgumentParser(prog="python -m callbacks", description="Checkpoints, and the hours of a run.")
    parser.add_argument(
        "command",
        choices=("list", "verify", "report"),
        help="list: checkpoints, as their last bytes tell; verify: read every byte; report: where the time of all attempts went",
    )
    parser.add_argument(
        "template_or_directory", help="a template, a file, a directory of checkpoints or a run's directory; for report, the last"
    )
    parser.add_argument("--json", action="store_true", help="for report: as plain data")
    args = parser.parse_args(argv)
    if args.command == "report":
        return _report(args.template_or_directory, args.json)
    try:
        paths = _paths_at(args.template_or_directory)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not paths:
        print(f"error: no checkpoints at {args.template_or_directory}", file=sys.stderr)
        return 2
    damaged = 0
    print(f"{'batch':>10} {'step':>10} {'epoch':>6} {'samples':>12} {'MB':>10} {'finite':>6}  file")
    for path, trailer, why in sorted(
        _look(paths, args.command == "verify"), key=lambda row: (row[1].batch if row[1] else -1, row[0])
    ):
        damaged += trailer is None
        if trailer is None:
            print(f"{'-':>10} {'-':>10} {'-':>6} {'-':>12} {'-':>10} {'-':>6}  {path}: {why}")
        else:
            size, stored = os.path.getsize(path) / 1e6, read_stored(path)
            finite = "-" if stored is None else "yes" if stored.finite else "NO"
            counts = f"{trailer.batch:>10} {trailer.step:>10} {trailer.epoch:>6} {trailer.samples:>12}"
            print(f"{counts} {size:>10.2f} {finite:>6}  {path}")
    if args.command == "verify":
        print(f"{len(paths)} files, {damaged} damaged" if damaged else f"{len(paths)} files, all whole")
    return 1 if damaged and args.command == "verify" else 0


def _report(directory: str, as_json: bool) -> int:
    from callbacks import report

    try:
        print(report.run(directory, as_json))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _paths_at(template_or_directory: str) -> list[str]:
    """The checkpoints there; or, at the directory of a run, those in its `checkpoints/`."""
    below = os.path.join(template_or_directory, "checkpoints")
    return candidates(template_or_directory) or (candidates(below) if os.path.isdir(below) else [])


def _look(paths: list[str], whole: bool) -> Iterator[tuple[str, Checkpoint | files.Trailer | None, str]]:
    for path in paths:
        try:
            yield path, read_whole(path) if whole else files.read_trailer(path), ""
        except (files.Damaged, InputError, OSError) as error:
            yield path, None, one_line(error)


if __name__ == "__main__":
    sys.exit(main())
