"""Lists the checkpoints of a template or a directory by their trailers, without TensorFlow."""

import errno
import os
import warnings

from callbacks.disk import files
from callbacks.disk.folders import is_url
from callbacks.disk.template import SUFFIXES, Template
from callbacks.errors import CheckpointReadError, InputError, one_line

NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the path leads to no file: a broken link, or a loop of links


def newest_first(
    template_or_directory: str | os.PathLike, failed: dict[str, OSError] | None = None, skip_unknown: bool = False
) -> list[tuple[str, files.Trailer]]:
    """Returns the path and trailer of each checkpoint, the highest batch first. Only the trailers are read.

    Args:
        template_or_directory: as for `latest_checkpoint`.
        failed: receives the error for each file that the disk fails to read.
        skip_unknown: whether to skip files of an unknown version of the format.

    Raises:
        InputError: if the version of a file's format is unknown.
    """
    found = []
    for path in candidates(template_or_directory):
        try:
            found.append((path, files.read_trailer(path), os.path.getmtime(path)))
        except InputError:
            if not skip_unknown:
                raise
        except (files.Corrupt, OSError) as error:
            skip(path, error, failed)
    found.sort(key=lambda each: (each[1].batch, each[2]), reverse=True)
    return [(path, trailer) for path, trailer, _ in found]


def candidates(template_or_directory: str | os.PathLike) -> list[str]:
    """Returns the paths that match a template, or the files in a directory with a checkpoint's suffix.

    Raises:
        InputError: if there is no such directory, or this user may not list it.
        CheckpointReadError: if the disk fails.
    """
    text = os.fspath(template_or_directory)
    directory = os.path.expanduser(text)
    try:
        if os.path.isdir(directory):
            entries = [entry.path for entry in os.scandir(directory) if not entry.name.startswith(".")]
            return [path for path in entries if path.endswith(SUFFIXES)]
        if not (os.path.lexists(directory) or is_url(text) or "{" in text or text.endswith(SUFFIXES)):
            raise InputError(f"There is no such directory: {text}")
        return Template(text).expanded().files()
    except OSError as error:
        raise read_failure(error.filename or directory, error) from None


def of_run(path: str | os.PathLike) -> str:
    """Returns the path of the checkpoints in a run's directory, `checkpoints/`; any other path unchanged."""
    below = os.path.join(os.path.expanduser(path), "checkpoints")
    return below if os.path.isdir(below) and not candidates(path) else os.fspath(path)


def read_failure(path: str, error: OSError) -> Exception:
    """Returns the error for a path that cannot be read."""
    if is_mistake(error):
        return InputError(f"Cannot read {path}: {one_line(error.strerror)}.")
    return CheckpointReadError.of(path, error)


def is_mistake(error: OSError) -> bool:
    """Returns whether the user has given a path that cannot be read, and not the disk failed."""
    return error.errno in NOWHERE or isinstance(error, PermissionError)


def skip(path: str, error: Exception, failed: dict[str, OSError] | None = None) -> None:
    """Warns that a file is skipped, unless it was deleted meanwhile, as old files of a run are.

    Args:
        path: the path of the file.
        error: why.
        failed: receives the error of a disk.
    """
    if isinstance(error, OSError) and failed is not None:
        failed[path] = error
    if os.path.lexists(path):
        warnings.warn(f"Skipped {one_line(path)}: {one_line(error)}.", stacklevel=4)
