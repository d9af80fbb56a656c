"""Trains recipes.mnist on a disk that fails after the checkpoint was verified, when its weights are read.

python tests/programs/failing_disk_run.py FLAG...
"""

import errno
import os
import sys

from callbacks.state import state
from recipes.common.run import run
from recipes.mnist import main

load_weights, preadv = state.load_weights, os.preadv


def failing_preadv(descriptor, *arguments):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".weights.h5"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return preadv(descriptor, *arguments)


def load_from_failing_disk(*arguments):
    os.preadv = failing_preadv
    load_weights(*arguments)


if __name__ == "__main__":
    state.load_weights = load_from_failing_disk
    run(lambda: main(sys.argv[1:]))
