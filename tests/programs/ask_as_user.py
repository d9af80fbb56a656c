"""Sends a request to a local port as another user, and prints the answer.

python tests/programs/ask_as_user.py USER PORT REQUEST
"""

import contextlib
import os
import socket
import sys

if __name__ == "__main__":
    user, port, request = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if user:
        os.setgroups([])
        os.setuid(user)
    with socket.socket() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.settimeout(10)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request.encode() + b"\r\n\r\n")
        print(connection.recv(100).decode())
