"""Closes the standard descriptors, lets the launcher open them, and exits with 0 if a socket gets another number.

python tests/programs/closed_descriptors.py
"""

import os
import socket

from launch import console

if __name__ == "__main__":
    os.closerange(0, 3)
    console.open_standard_descriptors()
    os._exit(0 if socket.socket().fileno() > 2 else 1)
