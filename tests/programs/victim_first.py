"""Rank 0 exits because it has lost another rank. Rank 1, the cause, fails only when rank 0 is gone.

python tests/programs/victim_first.py
"""

import os
import sys
import time
from pathlib import Path

from launch import exit_codes


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    victim = Path("victim")
    if os.environ["RANK"] == "0":
        Path("victim.new").write_text(str(os.getpid()))
        os.rename("victim.new", victim)
        sys.exit(exit_codes.ANOTHER_RANK_FAILED)
    while not victim.exists() or is_alive(int(victim.read_text())):
        time.sleep(0.01)
    raise ValueError("the cause")
