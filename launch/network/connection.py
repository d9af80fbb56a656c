"""Connections between the processes of the launcher, with one line for each message. Connections to other launchers are signed."""

import hashlib
import hmac
import re
import secrets
import socket
from typing import Literal

from launch.network.messages import Message, Refused, decode, encode

LONGEST = 1 << 22  # bytes of one message; a thousand nodes need far less
NONCE = 32  # bytes

Problem = Literal["", "unreadable", "authentication"]


class Connection:
    """One end of a connection between two processes that trust each other.

    Args:
        connected: a connected stream socket.
        longest: the size limit of a received message, in bytes.
    """

    def __init__(self, connected: socket.socket, longest: int = LONGEST):
        self._socket = connected
        self._longest = longest
        self._received = b""
        self.closed = False
        self.problem: Problem = ""  # why the connection is closed, if the peer sent something wrong

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Sends a message. If the peer is gone, sets `closed`."""
        try:
            self._socket.sendall(self._pack(encode(message)) + b"\n")
        except OSError:
            self.closed = True

    def receive(self) -> list[Message]:
        """Waits for data, and returns the messages that are complete.

        Sets `closed` at the end of the connection and after data that is not a message; `problem` then says what was wrong.

        Raises:
            TimeoutError: if the socket has a timeout, and the timeout has expired.
        """
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # the kernel's ETIMEDOUT has one
                raise
            data = b""
        self._received += data
        self.closed = self.closed or not data
        try:
            if not self._greeted():
                return []
            *lines, self._received = self._received.split(b"\n")
            messages = [decode(self._unpack(line)) for line in lines]
            if len(self._received) > self._longest:
                raise ValueError("a message without an end")
            return messages
        except ValueError:
            self.closed = True
            self.problem = self.problem or "unreadable"
            return []

    def close(self) -> None:
        """Closes the connection."""
        self.closed = True
        self._socket.close()

    def _greeted(self) -> bool:
        """Returns whether the handshake is complete."""
        return True

    def _pack(self, body: bytes) -> bytes:
        return body

    def _unpack(self, line: bytes) -> bytes:
        return line


class SignedConnection(Connection):
    """A connection that signs each message with a shared secret.

    First, both sides send a random number. The key is derived from both numbers and the secret. Each signature also covers the
    direction and the sequence number of its message, so that no message can be replayed. Messages are not encrypted.

    Args:
        connected: a connected stream socket.
        secret: shared by both sides.
        server: whether this side accepted the connection.
        longest: the size limit of a received message, in bytes.

    Raises:
        OSError: if the peer is gone.
    """

    def __init__(self, connected: socket.socket, secret: bytes, *, server: bool, longest: int = LONGEST):
        super().__init__(connected, longest)
        self._secret, self._server = secret, server
        self._nonce = secrets.token_hex(NONCE // 2).encode()
        self._key = b""
        self._directions = (b"to client", b"to server") if server else (b"to server", b"to client")
        self._sent = self._seen = 0
        connected.sendall(self._nonce)

    def refuse(self) -> None:
        """Tells a peer whose authentication failed that the secrets differ: the peer cannot verify this message either."""
        self.send(Refused())

    @property
    def greeted(self) -> bool:
        """Whether the peer's random number has arrived, so that messages can be signed."""
        return bool(self._key)

    def _greeted(self):
        if not self._key and len(self._received) >= NONCE:
            theirs, self._received = self._received[:NONCE], self._received[NONCE:]
            if not re.fullmatch(rb"[0-9a-f]+", theirs):
                raise ValueError("not a launcher")
            numbers = self._nonce + theirs if self._server else theirs + self._nonce
            self._key = hmac.digest(self._secret, b"launch 2 " + numbers, hashlib.sha256)
        return self.greeted

    def _signature(self, direction, count, body):
        return hmac.new(self._key, b"%s %d %s" % (direction, count, body), hashlib.sha256).hexdigest().encode()

    def _pack(self, body):
        self._sent += 1
        return self._signature(self._directions[0], self._sent, body) + b" " + body

    def _unpack(self, line):
        self._seen += 1
        if not re.match(rb"[0-9a-f]{64} ", line):
            raise ValueError("no signature")
        signature, _, body = line.partition(b" ")
        if not hmac.compare_digest(signature, self._signature(self._directions[1], self._seen, body)):
            self.problem = "authentication"
            raise ValueError("another signature")
        return body


def keep_alive(connected: socket.socket) -> None:
    """Removes the timeout of a socket, but lets the kernel notice within seconds that the other machine is gone."""
    connected.settimeout(None)
    for option, value in (
        (socket.TCP_KEEPIDLE, 2),
        (socket.TCP_KEEPINTVL, 2),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 8000),
    ):
        connected.setsockopt(socket.IPPROTO_TCP, option, value)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
