"""Takes the lock of a template as the user nobody, once for each line of standard input, and prints the result.

python tests/programs/take_locks.py TEMPLATE DIRECTORY
"""

import os
import sys

from callbacks import InputError
from callbacks.disk.lock import Lock

NOBODY = 65534

if __name__ == "__main__":
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    for _ in sys.stdin:
        try:
            Lock(sys.argv[1], sys.argv[2]).acquire()
            print("taken", flush=True)
        except InputError as error:
            print(error, flush=True)
