"""Listens on a local port as another user, and prints what callers send.

python tests/programs/listen_as_user.py USER PORT
"""

import contextlib
import os
import socket
import sys

if __name__ == "__main__":
    os.setuid(int(sys.argv[1]))
    with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as server:
        print("listens", flush=True)
        while True:
            connection, _ = server.accept()
            connection.sendall(b"0" * 32)
            print(connection.recv(32), flush=True)
            with contextlib.suppress(OSError):
                print(connection.recv(1000), flush=True)
