"""Looks for a checkpoint on a disk that fails from some read on, and ends with the error: each time in a fork of this process.

Prints the exit codes. The forks write their standard error to files.

python tests/programs/unreadable_checkpoint.py CHECKPOINT FIRST_READ_THAT_FAILS_OR_0 ERRORS [CHECKPOINT FIRST ERRORS]...
"""

import errno
import itertools
import json
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


def main(cases):
    codes = []
    for path, first, errors in cases:
        child = os.fork()
        if not child:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
            os.preadv = failing_preadv(itertools.count(1), int(first))
            restoring.named_checkpoint(path)  # ends the fork, as Python ends
            sys.exit()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    arguments = iter(sys.argv[1:])
    main(zip(arguments, arguments, arguments, strict=True))
