"""Messages between the launcher's processes: one JSON object a line over a socket, sealed where it leaves the machine."""

import hashlib
import hmac
import json
import secrets
import socket
from typing import Any

LONGEST = 1 << 22  # bytes of one message: far above what a thousand nodes need, far below what would hurt


class Link:
    """One end of a connection.

    Args:
        connection: a connected stream socket.
    """

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._received = b""
        self.closed = False
        self.forged = False  # a message had another seal: the other side has another secret

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; nothing happens if the other side is gone, which `receive` says."""
        try:
            self._socket.sendall(self._pack(json.dumps(message).encode()) + b"\n")
        except OSError:
            self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """Waits for the next piece of data and returns the messages that it completes.

        At the end of the connection, also after a message that is broken or not sealed as it should be, `closed` is set.

        Raises:
            TimeoutError: if the socket has a timeout, and it passed.
        """
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # the socket's own; the kernel's is the end
                raise
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        if not data or len(self._received) > LONGEST:
            self.closed = True
        try:
            return [json.loads(self._unpack(line)) for line in lines]
        except ValueError:
            self.closed = self.forged = True
            return []

    def close(self) -> None:
        """Closes the connection."""
        self.closed = True
        self._socket.close()

    def _pack(self, body):
        return body

    def _unpack(self, line):
        return line


class SealedLink(Link):
    """A link whose messages carry a seal that only who knows the secret can make.

    Both sides send a random number first. Key and seals follow from both numbers and the secret, and each seal from the
    direction and the count of its message too, so that nothing heard earlier can be said again. What is said is no secret.

    Args:
        connection: a connected stream socket, with a timeout.
        secret: shared by both sides.
        server: which of the two sides this is.

    Raises:
        OSError: if the other side does not answer.
    """

    def __init__(self, connection: socket.socket, secret: bytes, *, server: bool):
        super().__init__(connection)
        mine = secrets.token_hex(16).encode()
        connection.sendall(mine)
        theirs = b""
        while len(theirs) < len(mine):
            piece = connection.recv(len(mine) - len(theirs))
            if not piece:
                raise ConnectionError("it hung up")
            theirs += piece
        numbers = mine + theirs if server else theirs + mine
        self._key = hmac.digest(secret, b"launch 1 " + numbers, hashlib.sha256)
        self._directions = (b"to client", b"to server") if server else (b"to server", b"to client")
        self._sent = self._seen = 0

    def _seal(self, direction, count, body):
        return hmac.new(self._key, b"%s %d %s" % (direction, count, body), hashlib.sha256).hexdigest().encode()

    def _pack(self, body):
        self._sent += 1
        return self._seal(self._directions[0], self._sent, body) + b" " + body

    def _unpack(self, line):
        self._seen += 1
        seal, _, body = line.partition(b" ")
        if not hmac.compare_digest(seal, self._seal(self._directions[1], self._seen, body)):
            raise ValueError("another seal")
        return body
