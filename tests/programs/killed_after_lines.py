"""A rank that writes 3000 lines and is killed at once.

python tests/programs/killed_after_lines.py
"""

import os
import signal

if __name__ == "__main__":
    for n in range(3000):
        os.write(1, b"line %d\n" % n)
    os.kill(os.getpid(), signal.SIGKILL)
