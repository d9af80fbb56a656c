"""A rank that waits for a signal, and exits as a recipe does after a save. It tells by files that it is ready, and what it heard.

python tests/programs/signalled_rank.py SECONDS_UNTIL_IT_HAS_HANDLERS
"""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    heard: list[int] = []
    time.sleep(float(sys.argv[1]))
    for name in ("INT", "TERM", "USR1", "USR2"):
        signal.signal(getattr(signal, f"SIG{name}"), lambda number, frame: heard.append(number))
    rank = os.environ["RANK"]
    Path(f"ready-{rank}").write_text("yes")
    while not heard:
        time.sleep(0.01)
    time.sleep(0.5)
    Path(f"heard-{rank}").write_text(" ".join(map(str, heard)))
    sys.exit({signal.SIGINT: 130, signal.SIGTERM: 143}.get(signal.Signals(heard[0]), 75))
