"""Looks for a checkpoint on a disk that fails from some read on, and ends with the error.

python tests/programs/unreadable_checkpoint.py CHECKPOINT FIRST_READ_THAT_FAILS_OR_0
"""

import errno
import itertools
import os
import sys

from callbacks.resuming import restoring

preadv = os.preadv


def failing_preadv(reads, first):
    def read(*arguments):
        if next(reads) >= first > 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(*arguments)

    return read


if __name__ == "__main__":
    os.preadv = failing_preadv(itertools.count(1), int(sys.argv[2]))
    restoring.named_checkpoint(sys.argv[1])
