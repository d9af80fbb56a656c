"""Runs a recipe: prints user errors in one line, and returns the exit codes that launcher and Slurm rely on."""

import re
import sys
import warnings
from collections.abc import Callable

import tensorflow as tf

from callbacks import CheckpointReadError, CheckpointWriteError, EventWriteError, InputError, Preempted, catch_signals, start_up
from callbacks.preemption import ignore_signals
from callbacks.ranks import RanksDiffer, ranks
from callbacks.report.run_record import note_failure
from launch.exit_codes import ANOTHER_RANK_FAILED, BAD_INPUT, FAILED
from recipes.common.data import BadSample
from recipes.common.run.paths import from_here

_LOST = ("Horovod has been shut down", "Connection closed by peer", "Connection reset by peer", "Collective ops is aborted")
_NOT_COMPILED = re.compile(r"^.*(?:on XLA_\w+_JIT: |XLA implementation).{0,200}", re.MULTILINE)  # from TensorFlow's compiler
_SILENT = re.compile(r"(?:^|remote target )/job:worker/replica:0/task:(\d+)\b", re.MULTILINE)  # ranks that have ended or stopped


def run(main: Callable[[], None]) -> None:
    """Runs the `main` function of a recipe, and ends the process with an exit code.

    `launch/exit_codes.py` lists the codes. The code is `FAILED` if the disk fails while a checkpoint or an event of TensorBoard
    is read or written, if a sample cannot be used, or if the ranks differ. Any other exception fails with a traceback.
    """
    start_up.end_phase("imports")
    warnings.showwarning = _show_warning
    catch_signals(for_good=True)
    try:
        main()
    except Preempted as stop:
        if ranks().is_chief:
            where = from_here(stop.path) if stop.path else "the beginning"
            print(f"stopped      {stop.reason}; the same command resumes from {where}", flush=True)
        raise
    except InputError as error:
        sys.exit(_print_error(error, BAD_INPUT))
    except (BadSample, CheckpointReadError, CheckpointWriteError, EventWriteError, RanksDiffer) as error:
        sys.exit(_print_error(error, FAILED))
    except tf.errors.OpError as error:
        bad_input = re.search(r"InputError: (.*)\nTraceback", error.message)  # raised in a function of a dataset
        if bad_input:
            sys.exit(_print_error(bad_input[1], BAD_INPUT))
        if not_compiled := _NOT_COMPILED.search(error.message):
            sys.exit(_print_error(f"XLA cannot compile this training. Use --jit-compile off. {not_compiled[0]}", BAD_INPUT))
        if not any(sign in error.message for sign in _LOST):
            raise
        sys.exit(_print_error(f"{lost_rank(error.message)}; see its last output for the reason", ANOTHER_RANK_FAILED))
    finally:
        ignore_signals()


def lost_rank(message: str) -> str:
    """Returns which ranks an error of a collective operation reports as lost. TensorFlow names them, Horovod does not."""
    silent = _SILENT.findall(message)
    if not silent:
        return "another rank has ended"
    return f"rank {silent[0]} does not respond" if len(silent) == 1 else f"ranks {', '.join(silent)} do not respond"


def _print_error(message, code):
    note_failure(str(message))
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr, flush=True)
