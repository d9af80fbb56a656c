"""A task that does not ignore USR1, and waits for it.

python tests/programs/killed_by_usr1.py
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.pause()
