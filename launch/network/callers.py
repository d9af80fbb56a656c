"""Callers: incoming connections that have not authenticated yet.

Any process can connect to a port. A caller has a few seconds for its first message, whose size is limited. The number of callers is
limited too: at the limit, or if the system cannot open another connection, the oldest caller is dropped. So no process can keep
a launcher of the run out. Dropped callers are counted by address and reason.
"""

import contextlib
import errno
import functools
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from launch import console
from launch.network.connection import SignedConnection
from launch.network.messages import Message
from launch.network.peers import is_trusted

PATIENCE = 5.0  # seconds for a caller's first message
LONGEST = 1 << 18  # bytes of the first message
MOST = 256  # callers at a time
AT_ONCE = 64  # callers to accept before reading messages of others
MOMENT = 0.1
MOST_REPORTED = 8  # dropped callers to report while the nodes meet, and in the summary
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection, and the port is free at once

SILENT, SLOW = "sent nothing", "did not finish its message in time"
REASONS = {"unreadable": "sent data that no launcher sends", "authentication": "has another LAUNCH_SECRET"}
OTHER_USER = "belongs to another user"


@dataclass(eq=False)
class Caller:
    """An incoming connection.

    Args:
        connected: the socket.
        connection: the signed connection over the socket.
        address: the address of the caller.
        own_address: the address that was called.
        deadline: when to drop the caller.
        answered: whether the caller has authenticated, or was refused.
        spoke: whether the caller has sent data.
    """

    connected: socket.socket
    connection: SignedConnection
    address: str
    own_address: str
    deadline: float
    answered: bool = False
    spoke: bool = False


Answer = Callable[[Caller, Message], None]


class Callers:
    """Accepts callers, and passes on the messages of those that know the secret.

    Args:
        secret: the secret of the run; if it is empty, only processes of this user and of root are accepted.
        most: the maximum number of callers at a time.
        clock: returns the time in seconds.
    """

    def __init__(self, secret: bytes, most: int = MOST, clock: Callable[[], float] = time.monotonic):
        self._secret, self._most, self._clock = secret, most, clock
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[Caller, None] = {}  # in the order of arrival
        self.dropped: Counter[tuple[str, str]] = Counter()  # address and reason

    def listen(self, listener: socket.socket, answer: Answer) -> None:
        """Accepts callers on this socket too.

        Args:
            listener: a listening socket.
            answer: called with each message of a caller that knows the secret.
        """
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, functools.partial(self._accept, listener, answer))

    def serve(self, seconds: float) -> None:
        """Handles connections and messages; waits at most this time."""
        for key, _ in self._selector.select(seconds):
            key.data()
        now = self._clock()
        for caller in [caller for caller in self._waiting if caller.deadline <= now]:
            self._drop(caller, _why_late(caller))

    def release(self, caller: Caller) -> SignedConnection:
        """Hands over an authenticated caller's connection."""
        self._forget(caller)
        return caller.connection

    def refuse(self, caller: Caller) -> None:
        """Drops an authenticated caller whose message no launcher sends."""
        self._count(caller, REASONS["unreadable"])
        self._disconnect(caller)

    def close(self) -> None:
        """Drops all remaining callers."""
        for caller in list(self._waiting):
            self._disconnect(caller)
        self._selector.close()

    def summary(self) -> str:
        """Returns which callers were dropped so far, and why; empty if none."""
        waiting = Counter((caller.address, _why_late(caller)) for caller in self._waiting if not caller.answered)
        most = (self.dropped + waiting).most_common(MOST_REPORTED)
        return ", ".join(f"{address} {reason} ({count}x)" for (address, reason), count in most)

    def _accept(self, listener, answer):
        for _ in range(AT_ONCE):
            try:
                connected, (address, *_) = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM and not self._drop_oldest():
                    time.sleep(MOMENT)  # wait until another connection closes
                    return
                continue
            if len(self._waiting) >= self._most:
                self._drop_oldest()
            if not self._secret and not is_trusted(connected):
                self.dropped[address, OTHER_USER] += 1
                _reset(connected)
                continue
            self._add(connected, address, answer)

    def _add(self, connected, address, answer):
        connected.setblocking(False)
        try:
            own = connected.getsockname()[0]
            connection = SignedConnection(connected, self._secret, server=True, longest=LONGEST)
        except OSError:  # the caller closed the connection
            _reset(connected)
            return
        caller = Caller(connected, connection, address, own, self._clock() + PATIENCE)
        self._waiting[caller] = None
        self._selector.register(connected, selectors.EVENT_READ, functools.partial(self._read, caller, answer))

    def _read(self, caller, answer):
        if caller not in self._waiting:  # dropped in favor of another caller
            return
        messages = caller.connection.receive()
        caller.spoke = caller.spoke or not caller.connection.closed
        for message in messages:
            caller.answered = True
            answer(caller, message)
            if caller not in self._waiting:  # released or refused; a launcher sends nothing more before it is answered
                return
        problem = caller.connection.problem
        if problem == "authentication" and not caller.answered:
            caller.answered = True
            self._count(caller, REASONS[problem])
            caller.connection.refuse()  # the caller cannot verify this message, and so learns the reason
        elif caller.connection.closed:
            self._drop(caller, REASONS.get(problem, _why_late(caller)))

    def _drop_oldest(self):
        oldest = next(iter(self._waiting), None)
        if oldest is not None:
            self._drop(oldest, _why_late(oldest))
        return oldest is not None

    def _drop(self, caller, reason):
        if not caller.answered:
            self._count(caller, reason)
        self._disconnect(caller)

    def _count(self, caller, reason):
        self.dropped[caller.address, reason] += 1
        if self.dropped[caller.address, reason] == 1 and reason != SILENT and len(self.dropped) <= MOST_REPORTED:
            console.say(f"a caller from {caller.address} {reason}")

    def _disconnect(self, caller):
        self._forget(caller)
        _reset(caller.connected)

    def _forget(self, caller):
        del self._waiting[caller]
        self._selector.unregister(caller.connected)


def _why_late(caller):
    return SLOW if caller.spoke else SILENT


def _reset(connected):
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connected.close()
