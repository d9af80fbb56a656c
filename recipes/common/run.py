"""How a recipe starts and ends: mistakes of the user in one line, and the exit codes that launchers and Slurm rely on."""

import sys
import time
import warnings
from collections.abc import Callable

import tensorflow as tf

from callbacks import CheckpointWriteError, InputError
from callbacks.ranks import RanksDiffer
from launch.world import read_world

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130

_CHIEF_FIRST = 10.0  # seconds
_LOST = ("Horovod has been shut down", "Connection closed by peer", "Connection reset by peer")


def run(main: Callable[[], None]) -> None:
    """Runs a recipe's `main` and leaves the process with its exit code.

    0 done; 2 bad input; 130 Ctrl-C; 1 a checkpoint could not be written, the ranks differ, or another rank has ended. Anything
    else fails with a traceback.
    """
    warnings.showwarning = _show_warning
    try:
        main()
    except InputError as error:
        _let_the_chief_speak()
        sys.exit(_say(error, BAD_INPUT))
    except (CheckpointWriteError, RanksDiffer) as error:
        sys.exit(_say(error, FAILED))
    except tf.errors.OpError as error:
        if not any(sign in error.message for sign in _LOST):
            raise
        sys.exit(_say("another rank has ended; what it said last tells why", FAILED))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command goes on from the newest checkpoint", INTERRUPTED))


def _let_the_chief_speak():
    """What is wrong with the input mostly is so on all ranks: one line is enough, and after it the launcher ends the others."""
    try:
        others = read_world().rank > 0
    except ValueError:  # it may be what is wrong
        return
    if others:
        time.sleep(_CHIEF_FIRST)


def _say(message, code):
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr, flush=True)
