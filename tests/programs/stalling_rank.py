"""A rank that reports batch 3 again and again, until the file `stall-RANK` exists. Then it waits for ever.

python tests/programs/stalling_rank.py
"""

import os
import time
from pathlib import Path

from launch.world import report_progress

BATCH = 3


def trains(rank):
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    while not os.path.exists(f"stall-{rank}"):
        report_progress(BATCH)
        time.sleep(0.05)


def waits_for_ever():
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    trains(os.environ["RANK"])
    waits_for_ever()
