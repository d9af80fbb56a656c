"""A rank that writes its environment to RANK.json. Rank 0 then binds its MASTER_PORT, which no other process may use.

python tests/programs/environment_rank.py
"""

import json
import os
import socket

if __name__ == "__main__":
    rank = os.environ["RANK"]
    with open(f"{rank}.json", "w") as file:
        json.dump(dict(os.environ), file)
    if rank == "0":
        with socket.socket() as listener:  # without SO_REUSEADDR, so a connection in TIME_WAIT would be an error
            listener.bind(("", int(os.environ["MASTER_PORT"])))
