"""Finds the user at the other end of a connection from this host.

Linux offers sock_diag(7), which looks up one socket, and /proc/net/tcp. Reading the latter takes milliseconds, because it lists all
sockets, and ranks make hundreds of requests when they start.
"""

import functools
import os
import socket
import struct
import sys
from collections.abc import Iterator

from launch import console

ROOT = 0
ESTABLISHED = 1  # a socket's state
_SOCK_DIAG, _BY_FAMILY, _REQUEST, _ANY = 4, 20, 1, 0xFFFFFFFF  # linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: size, type, flags, sequence, port
_FOUND = struct.Struct("=BB50x12x2I")  # struct inet_diag_msg: family, state, ..., user, inode

End = tuple[str, int]  # address and port


def is_trusted(connection: socket.socket) -> bool:
    """Returns whether a local connection belongs to a process of this user or of root. Connections from other hosts pass.

    Args:
        connection: a connected IPv4 TCP socket.
    """
    try:
        peer, own = connection.getpeername(), connection.getsockname()
    except OSError:  # the connection is already closed
        return False
    if not peer[0].startswith("127.") and peer[0] != own[0]:
        return True
    user = _user_of(peer, own)
    if user not in (ROOT, os.geteuid()):
        _report(user)
        return False
    # Linux attributes a closed socket to root. While this end is established, the other end is open.
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def _user_of(local: End, remote: End) -> int | None:
    """Returns the user whose socket has these two ends; None if no process on this host has such a socket."""
    for look in (_ask_kernel, _read_proc):
        for state, user, inode in look(local, remote):
            if state == ESTABLISHED and inode:  # a socket without an inode belongs to no process
                return user
    return None


def _ask_kernel(local: End, remote: End) -> Iterator[tuple[int, int, int]]:
    """Yields state, user and inode of the socket with these ends, if sock_diag(7) is available and knows it."""
    ends = struct.pack("!2H16s16s", local[1], remote[1], socket.inet_aton(local[0]), socket.inet_aton(remote[0]))
    query = struct.pack("=4BI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ANY) + ends + struct.pack("=3I", 0, _ANY, _ANY)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.settimeout(1)
            kernel.sendto(_MESSAGE.pack(_MESSAGE.size + len(query), _BY_FAMILY, _REQUEST, 1, 0) + query, (0, 0))
            answer = kernel.recv(4096)
    except OSError:
        return
    if _MESSAGE.unpack_from(answer)[1] == _BY_FAMILY:
        _, *found = _FOUND.unpack_from(answer, _MESSAGE.size)
        yield tuple(found)


def _read_proc(local: End, remote: End) -> Iterator[tuple[int, int, int]]:
    """Yields the same from /proc/net/tcp, and from tcp6 for IPv4 connections of IPv6 sockets."""
    for path, write in (("/proc/net/tcp", _write), ("/proc/net/tcp6", _write_mapped)):
        ends = [write(*local), write(*remote)]
        try:
            with open(path) as file:
                rows = [row for row in map(str.split, file) if row[1:3] == ends]
        except OSError:  # the kernel has no IPv6
            continue
        for row in rows:
            yield int(row[3], 16), int(row[7]), int(row[9])


def _write(address: str, port: int) -> str:
    """Returns address and port as the kernel prints them: 32 bits at a time, in the byte order of this machine."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}:{port:04X}"


def _write_mapped(address: str, port: int) -> str:
    """Returns the same as an IPv6 address: ::ffff:127.0.0.1."""
    return f"{0:016X}{int.from_bytes(bytes.fromhex('0000ffff'), sys.byteorder):08X}{_write(address, port)}"


@functools.cache  # once for each user
def _report(user: int | None) -> None:
    whose = "whose process is not found" if user is None else f"which belongs to user {user}"
    console.say(f"refused a connection from this host, {whose}")
