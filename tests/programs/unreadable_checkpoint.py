"""Looks for a checkpoint on a disk that fails when the HDF5 library reads, and ends with the error: each time in a fork.

Prints the exit codes. The forks write their standard error to files.

python tests/programs/unreadable_checkpoint.py CHECKPOINT FIRST_READ_THAT_FAILS_OR_0 ERRORS [CHECKPOINT FIRST ERRORS]...
"""

import errno
import json
import os
import sys

from callbacks.disk import hdf5_file
from callbacks.resuming import restoring

check_plain, preadv = hdf5_file.check_plain, os.preadv
hdf5_file._BLOCK, hdf5_file._MOST_BLOCKS = 512, 1  # so that HDF5 reads the disk, as in a large file


class Disk:
    """Fails from some read on, counted from the check of the structure, after which HDF5 opens the file."""

    def __init__(self, first):
        self._first, self._reads = first, 0

    def check_plain(self, *arguments):
        check_plain(*arguments)
        self._reads = 1

    def preadv(self, *arguments):
        if self._reads:
            self._reads += 1
            if self._reads > self._first > 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(*arguments)


def main(cases):
    codes = []
    for path, first, errors in cases:
        child = os.fork()
        if not child:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
            disk = Disk(int(first))
            hdf5_file.check_plain, os.preadv = disk.check_plain, disk.preadv
            restoring.named_checkpoint(path)  # ends the fork, as Python ends
            sys.exit()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    arguments = iter(sys.argv[1:])
    main(zip(arguments, arguments, arguments, strict=True))
