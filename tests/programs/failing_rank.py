"""A rank that waits until all ranks have started. Then rank 1 fails.

python tests/programs/failing_rank.py
"""

import os
import time
from pathlib import Path

if __name__ == "__main__":
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    while not all(os.path.exists(f"pid-{each}") for each in range(size)):
        time.sleep(0.01)
    if rank == 1:
        raise ValueError("boom")
    time.sleep(1000)
