"""Opens files that anybody may have put there."""

import os
import stat
from typing import BinaryIO


class NotRegular(OSError):
    """The path is not a regular file but a directory, a FIFO or a device, whose reads may never end."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading, and never waits as an open of a FIFO may do.

    Raises:
        NotRegular: if it is not a regular file.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular("it is not a regular file")
    return open(descriptor, "rb")
