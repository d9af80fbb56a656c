"""Holds the lock of a template until it is killed.

python tests/programs/hold_lock.py TEMPLATE DIRECTORY
"""

import sys
import time

from callbacks.disk.lock import Lock

if __name__ == "__main__":
    Lock(sys.argv[1], sys.argv[2]).acquire()
    print("held", flush=True)
    time.sleep(600)
