"""Paths of local folders; new folders, and new names in folders, that survive a crash of the machine."""

import contextlib
import os
import re
from pathlib import Path

from callbacks.errors import InputError


def is_url(path: str) -> bool:
    """Whether a path names remote storage: `gs://bucket/run`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def local_folder(path: str | os.PathLike) -> str:
    """Returns the path of a folder from the root, with the home directory in place of a leading `~`.

    Raises:
        InputError: if the path is a URL.
    """
    text = os.fspath(path)
    if is_url(text):
        raise InputError(f"Give a folder on a local or mounted file system, not a URL. Received: {text!r}")
    return os.path.abspath(os.path.expanduser(text))


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder and its missing parents, and flushes the entry of each to the disk.

    A folder that exists is fine. Its entry is flushed too: whoever made it may have died before that.

    Raises:
        OSError: if it cannot be made.
    """
    folder = Path(path)
    if folder.is_dir():
        with contextlib.suppress(PermissionError):  # somebody else's parent, who had rights that we lack
            flush_folder(folder.parent)
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(path: str | os.PathLike) -> None:
    """Flushes the entries of a folder to the disk: a file in it keeps its name after a crash.

    Raises:
        OSError: if the disk reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
