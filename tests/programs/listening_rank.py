"""A rank that listens on its MASTER_PORT, and writes the port to the file `port`.

python tests/programs/listening_rank.py
"""

import os
import socket
import time
from pathlib import Path

if __name__ == "__main__":
    port = int(os.environ["MASTER_PORT"])
    with socket.socket() as listener:
        listener.bind(("", port))
        listener.listen()
        Path("port").write_text(str(port))
        time.sleep(1000)
