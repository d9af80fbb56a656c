"""Whether a name still stands for the same file or directory."""

import os


def identity(path: str) -> tuple[int, int] | None:
    """Returns the device and inode of a file or directory; None if there is none of that name.

    Raises:
        OSError: if the file system does not answer.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
