"""How a recipe starts and ends: mistakes of the user in one line, and the exit codes that launchers and Slurm rely on."""

import re
import sys
import warnings
from collections.abc import Callable

import tensorflow as tf

from callbacks import CheckpointWriteError, EventWriteError, InputError, Preempted, catch_signals, start_up
from callbacks.preemption import ignore_signals
from callbacks.ranks import RanksDiffer, ranks
from callbacks.run_record import note_failure
from launch.exit_codes import ANOTHER_RANK_FAILED, BAD_INPUT, FAILED
from recipes.common.data import BadSample
from recipes.common.run.paths import from_here

_LOST = ("Horovod has been shut down", "Connection closed by peer", "Connection reset by peer", "Collective ops is aborted")
_SILENT = re.compile(r"^/job:worker/replica:0/task:(\d+)$", re.MULTILINE)  # ranks that have ended, or have stopped


def run(main: Callable[[], None]) -> None:
    """Runs a recipe's `main` and leaves the process with its exit code.

    `launch/exit_codes.py` lists the codes. `FAILED`: a checkpoint or TensorBoard's events could not be written, a sample cannot
    be used, or the ranks differ. Anything without a code of its own fails with a traceback.
    """
    start_up.end_phase("imports")
    warnings.showwarning = _show_warning
    catch_signals(for_good=True)
    try:
        main()
    except Preempted as left:
        if ranks().is_chief:
            where = from_here(left.path) if left.path else "the beginning"
            print(f"stopped      {left.reason}; the same command resumes from {where}", flush=True)
        raise
    except InputError as error:
        sys.exit(_say(error, BAD_INPUT))
    except (BadSample, CheckpointWriteError, EventWriteError, RanksDiffer) as error:
        sys.exit(_say(error, FAILED))
    except tf.errors.OpError as error:
        bad_input = re.search(r"InputError: (.*)\nTraceback", error.message)  # raised by what a dataset calls
        if bad_input:
            sys.exit(_say(bad_input[1], BAD_INPUT))
        if not any(sign in error.message for sign in _LOST):
            raise
        silent = ", ".join(f"rank {number}" for number in _SILENT.findall(error.message))  # named by TensorFlow, not by Horovod
        lost = f"{silent} gives no sign of life" if silent else "another rank has ended"
        sys.exit(_say(f"{lost}; what it said last tells why", ANOTHER_RANK_FAILED))
    finally:
        ignore_signals()


def _say(message, code):
    note_failure(str(message))
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr, flush=True)
