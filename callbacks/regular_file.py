"""Reading files that anybody may have put there."""

import os
import stat
from typing import BinaryIO


class NotRegular(OSError):
    """It is a FIFO or a device, which may never end, or a directory."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading, and waits for nobody to write to it.

    Raises:
        NotRegular: if it is none.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular("it is no regular file")
    return open(descriptor, "rb")
