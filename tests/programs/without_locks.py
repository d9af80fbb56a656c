"""Resumes, saves, lists and verifies while `flock` fails like on file systems without locks.

LD_PRELOAD=no_locks.so python tests/programs/without_locks.py RUN,ERRNO,SUFFIX ...

Each run is a directory with a checkpoint of batch 5, in which `flock` fails with this errno.
"""

import fcntl
import os
import sys

import h5py
from small import fit, small_model

from callbacks import GlobalStepCheckpoint, latest_checkpoint
from callbacks.__main__ import main


def check_that_there_are_no_locks(path, number):
    """Checks that `flock` fails at `path`, and that HDF5 cannot open a file there."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            sys.exit("the file system has locks")
        except OSError as error:
            assert error.errno == number
    try:
        h5py.File(path, "w")
        sys.exit("HDF5 needs no locks")
    except OSError:
        os.unlink(path)


def use(model, run, suffix):
    """Uses checkpoints in all ways."""
    checkpoint = GlobalStepCheckpoint(run + "/b{batch:02d}" + suffix, save_freq=5, resume=True, keep_last=2)
    fit(model, checkpoint, shuffle=False)
    assert checkpoint.resumed_from and checkpoint.resumed_from.batch == 5
    assert (newest := latest_checkpoint(run)) and newest.batch == 10
    assert main(["list", run]) == 0
    assert main(["verify", run]) == 0


if __name__ == "__main__":
    model = small_model()
    for run, number, suffix in (argument.split(",") for argument in sys.argv[1:]):
        os.environ["FLOCK_ERRNO"] = number
        check_that_there_are_no_locks(run + "/.probe", int(number))
        use(model, run, suffix)
