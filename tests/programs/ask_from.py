"""Sends a request to Horovod's rendezvous server from an address of this host, and prints the first bytes of the answer.

python tests/programs/ask_from.py HOST PORT OWN_ADDRESS
"""

import socket
import sys

if __name__ == "__main__":
    host, port, own = sys.argv[1:]
    with socket.create_connection((host, int(port)), 30, (own, 0)) as connection:
        connection.sendall(b"GET /global/0 HTTP/1.0\r\n\r\n")
        print(connection.recv(100)[:12])
