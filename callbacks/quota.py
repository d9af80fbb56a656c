"""The room that disk quotas leave to this process (quotactl(2)), where the file system is local and Linux 5.14 or newer."""

import ctypes
import math
import os
import stat
import sys

_CALL = 443  # quotactl_fd, on all machines
_GET = 0x800007 << 8  # Q_GETQUOTA
_OF_USER, _OF_GROUP = 0, 1
_BLOCK = 1024  # bytes


class Quota(ctypes.Structure):
    """`struct if_dqblk` of the kernel."""

    _fields_ = (
        ("most", ctypes.c_uint64),  # blocks; 0 for no limit
        ("most_for_long", ctypes.c_uint64),  # blocks; more are allowed for some days
        ("used", ctypes.c_uint64),  # bytes
        ("of_files", ctypes.c_uint64 * 3),
        ("times", ctypes.c_uint64 * 2),
        ("valid", ctypes.c_uint32),
    )


def bytes_left(directory: str) -> float:
    """Returns how many bytes quotas let this process add to a directory; infinity if there is no quota, or it is not known.

    Quotas of this user, and of the group that new files there belong to, are known to the kernel for local file systems. A server
    that enforces quotas (NFS, Lustre) reports them only when they are exceeded.

    Raises:
        OSError: if the directory cannot be opened.
    """
    if sys.platform != "linux":
        return math.inf
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        group = status.st_gid if status.st_mode & stat.S_ISGID else os.getegid()
        return min(_left(descriptor, _OF_USER, os.geteuid()), _left(descriptor, _OF_GROUP, group))
    finally:
        os.close(descriptor)


def _left(descriptor: int, kind: int, owner: int) -> float:
    quota = Quota()
    call = (ctypes.c_long(_CALL), ctypes.c_int(descriptor), ctypes.c_uint(_GET | kind), ctypes.c_uint(owner))
    limit = 0 if ctypes.CDLL(None).syscall(*call, ctypes.byref(quota)) else quota.most or quota.most_for_long
    return max(limit * _BLOCK - quota.used, 0) if limit else math.inf
