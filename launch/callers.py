"""Connections of processes that have not proven yet that they belong to the run.

Anybody can connect to a port. A caller has a few seconds for its first message, and a limit on its size. There is a limit on the
number of callers too: when it is reached, or when the system has no room for another connection, the one that waits longest is
dropped. So nobody keeps a launcher of the run out, and those who called in vain are counted by address and reason.
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
from launch.connection import SignedConnection
from launch.messages import Message
from launch.peers import is_trusted

PATIENCE = 5.0  # seconds for a caller's first message
LONGEST = 1 << 18  # bytes of it
MOST = 256  # callers at a time
AT_ONCE = 64  # are accepted before the messages of others are read
MOMENT = 0.1
MOST_REPORTED = 8  # lines on strangers while the nodes meet, and of their summary
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection, and the port is free at once

SILENT, SLOW = "said nothing", "did not finish its message in time"
REASONS = {"unreadable": "sent what no launcher sends", "authentication": "has another LAUNCH_SECRET"}
OTHER_USER = "belongs to another user"


@dataclass(eq=False)
class Caller:
    """Somebody who called.

    Args:
        connected: the connection's socket.
        connection: the same, with its signatures.
        address: of the caller.
        own_address: the one that was called.
        deadline: when it is dropped.
        answered: it has proven that it knows the secret.
        spoke: it sent something.
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
        secret: the run's; if it is empty, only processes of this user and of root are heard.
        most: callers at a time.
        clock: seconds.
    """

    def __init__(self, secret: bytes, most: int = MOST, clock: Callable[[], float] = time.monotonic):
        self._secret, self._most, self._clock = secret, most, clock
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[Caller, None] = {}  # in the order in which they came
        self.strangers: Counter[tuple[str, str]] = Counter()  # address and reason

    def listen(self, listener: socket.socket, answer: Answer) -> None:
        """Accepts callers here, too.

        Args:
            listener: a listening socket.
            answer: called with each message of a caller that knows the secret.
        """
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, functools.partial(self._accept, listener, answer))

    def serve(self, seconds: float) -> None:
        """Waits for so long at most, and deals with what has come."""
        for key, _ in self._selector.select(seconds):
            key.data()
        now = self._clock()
        for caller in [caller for caller in self._waiting if caller.deadline <= now]:
            self._drop(caller, _lateness(caller))

    def release(self, caller: Caller) -> SignedConnection:
        """Lets a caller go on without this object."""
        self._forget(caller)
        return caller.connection

    def close(self) -> None:
        """Drops all callers that are left."""
        for caller in list(self._waiting):
            self._forget(caller)
            _reset(caller.connected)
        self._selector.close()

    def summary(self) -> str:
        """Who called in vain so far, and why; empty if nobody did."""
        waiting = Counter((caller.address, _lateness(caller)) for caller in self._waiting if not caller.answered)
        most = (self.strangers + waiting).most_common(MOST_REPORTED)
        return ", ".join(f"{address} {reason} ({count}x)" for (address, reason), count in most)

    def _accept(self, listener, answer):
        for _ in range(AT_ONCE):
            try:
                connected, (address, *_) = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM and not self._drop_oldest():
                    time.sleep(MOMENT)  # nothing can be done but wait until something else is closed
                    return
                continue
            if len(self._waiting) >= self._most:
                self._drop_oldest()
            if not self._secret and not is_trusted(connected):
                self.strangers[address, OTHER_USER] += 1
                _reset(connected)
                continue
            self._welcome(connected, address, answer)

    def _welcome(self, connected, address, answer):
        connected.setblocking(False)
        try:
            own = connected.getsockname()[0]
            connection = SignedConnection(connected, self._secret, server=True, longest=LONGEST)
        except OSError:  # it hung up
            _reset(connected)
            return
        caller = Caller(connected, connection, address, own, self._clock() + PATIENCE)
        self._waiting[caller] = None
        self._selector.register(connected, selectors.EVENT_READ, functools.partial(self._hear, caller, answer))

    def _hear(self, caller, answer):
        if caller not in self._waiting:  # it was dropped for another one
            return
        messages = caller.connection.receive()
        caller.spoke = caller.spoke or not caller.connection.closed
        for message in messages:
            caller.answered = True
            answer(caller, message)
        if caller not in self._waiting:
            return
        problem = caller.connection.problem
        if problem == "authentication" and not caller.answered:
            caller.answered = True
            self._count(caller, REASONS[problem])
            caller.connection.refuse()  # with a signature that is another for it: so it knows
        elif caller.connection.closed:
            self._drop(caller, REASONS.get(problem, _lateness(caller)))

    def _drop_oldest(self):
        oldest = next(iter(self._waiting), None)
        if oldest is not None:
            self._drop(oldest, _lateness(oldest))
        return oldest is not None

    def _drop(self, caller, reason):
        if not caller.answered:
            self._count(caller, reason)
        self._forget(caller)
        _reset(caller.connected)

    def _count(self, caller, reason):
        self.strangers[caller.address, reason] += 1
        if self.strangers[caller.address, reason] == 1 and reason != SILENT and len(self.strangers) <= MOST_REPORTED:
            console.say(f"{caller.address} called, and {reason}")

    def _forget(self, caller):
        del self._waiting[caller]
        self._selector.unregister(caller.connected)


def _lateness(caller):
    return SLOW if caller.spoke else SILENT


def _reset(connected):
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connected.close()
