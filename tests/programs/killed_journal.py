"""Trains with journals, and kills itself after a batch.

python tests/programs/killed_journal.py DIRECTORY BATCH
"""

import os
import signal
import sys
from pathlib import Path

from journal import train
from small import Do

if __name__ == "__main__":
    train(Path(sys.argv[1]), Do(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)))
