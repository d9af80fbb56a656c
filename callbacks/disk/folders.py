"""Paths of local folders; creates folders, and flushes them so that new names survive a crash of the machine."""

import contextlib
import os
import re
from pathlib import Path

from callbacks.errors import InputError


def is_url(path: str) -> bool:
    """Returns whether a path is a URL, such as `gs://bucket/run`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def local_folder(path: str | os.PathLike) -> str:
    """Returns the absolute path of a folder, with the home directory in place of a leading `~`.

    Raises:
        InputError: if the path is a URL.
    """
    text = os.fspath(path)
    if is_url(text):
        raise InputError(f"Give a folder on a local or mounted file system, not a URL. Received: {text!r}")
    return os.path.abspath(os.path.expanduser(text))


def make_folder(path: str | os.PathLike) -> None:
    """Creates a folder and its missing parents, and flushes the entry of each to the disk.

    The entry of an existing folder is flushed too, since the process that created it may have died before its own flush.

    Raises:
        OSError: if the folder cannot be created.
    """
    folder = Path(path)
    if folder.is_dir():
        with contextlib.suppress(PermissionError):  # the parent belongs to another user
            flush_folder(folder.parent)
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(path: str | os.PathLike) -> None:
    """Flushes the entries of a folder to the disk, so that its files keep their names after a crash.

    Raises:
        OSError: if the disk reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
