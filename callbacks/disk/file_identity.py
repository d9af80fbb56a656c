"""Identifies files, to find out whether a path still leads to the same one."""

import os


def identity(path: str | int) -> tuple[int, int] | None:
    """Returns the device and inode of a file or directory; None if the path does not exist.

    Args:
        path: the path, or the descriptor of an open file.

    Raises:
        OSError: if the file system does not answer.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
