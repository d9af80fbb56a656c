"""Trains until an exception ends training during a save.

python tests/programs/ends_in_a_save.py ERROR TEMPLATE
"""

import builtins
import sys
import time

from small import Do, fit, small_model

import callbacks.saving.checkpoint_maker
from callbacks import GlobalStepCheckpoint
from callbacks.state import state


def slow(*args):
    time.sleep(1)
    write(*args)


def fail():
    raise getattr(builtins, sys.argv[1])("boom")


if __name__ == "__main__":
    write = state.write
    callbacks.saving.checkpoint_maker.state.write = slow
    fit(small_model(), GlobalStepCheckpoint(sys.argv[2], save_freq=4), Do(5, fail))
