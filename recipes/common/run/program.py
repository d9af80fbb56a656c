"""How a recipe starts and ends: mistakes of the user in one line, and the exit codes that launchers and Slurm rely on."""

import re
import sys
import time
import warnings
from collections.abc import Callable

import tensorflow as tf

from callbacks import CheckpointWriteError, EventWriteError, InputError, Preempted, catch_signals
from callbacks.preemption import ignore_signals
from callbacks.ranks import RanksDiffer, ranks
from launch.world import read_world
from recipes.common.data import BadSample
from recipes.common.run.paths import from_here

BAD_INPUT = 2
FAILED = 1

_GIVE_WAY = 10.0  # seconds, in which the launcher ends this rank
_LOST = ("Horovod has been shut down", "Connection closed by peer", "Connection reset by peer")


def run(main: Callable[[], None]) -> None:
    """Runs a recipe's `main` and leaves the process with its exit code.

    0 done; 2 bad input; 75 stopped by USR1 or USR2, 143 by TERM and 130 by Ctrl-C, after a saved checkpoint; 1 a checkpoint or
    TensorBoard's events could not be written, a sample cannot be used, the ranks differ, or another rank has ended. Anything
    else fails with a traceback.
    """
    warnings.showwarning = _show_warning
    catch_signals(for_good=True)
    try:
        main()
    except Preempted as left:
        if ranks().is_chief:
            print(
                f"stopped      the same command goes on from {from_here(left.path) if left.path else 'the beginning'}", flush=True
            )
        raise
    except InputError as error:
        _give_way(chief_too=False)  # what is wrong mostly is so on all ranks, and one line is enough
        sys.exit(_say(error, BAD_INPUT))
    except (BadSample, CheckpointWriteError, EventWriteError, RanksDiffer) as error:
        sys.exit(_say(error, FAILED))
    except tf.errors.OpError as error:
        bad_input = re.search(r"InputError: (.*)\nTraceback", error.message)  # raised by what a dataset calls
        if bad_input:
            sys.exit(_say(bad_input[1], BAD_INPUT))
        if not any(sign in error.message for sign in _LOST):
            raise
        _give_way(chief_too=True)  # a rank that raised takes its time to end, and is the one to be named
        sys.exit(_say("another rank has ended; what it said last tells why", FAILED))
    finally:
        ignore_signals()


def _give_way(*, chief_too):
    """Waits for another rank, which has more to say, to end first: the launcher then names that one, and ends this one."""
    try:
        world = read_world()
    except ValueError:  # it may be what is wrong
        return
    if world.run_id and (chief_too or world.rank > 0):
        time.sleep(_GIVE_WAY)


def _say(message, code):
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr, flush=True)
