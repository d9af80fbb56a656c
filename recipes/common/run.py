"""How a recipe starts and ends: mistakes of the user in one line, and the exit codes that launchers and Slurm rely on."""

import sys
import warnings
from collections.abc import Callable

from callbacks import CheckpointWriteError, InputError

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


def run(main: Callable[[], None]) -> None:
    """Runs a recipe's `main` and leaves the process with its exit code.

    0 done; 2 bad input; 130 Ctrl-C; 1 a checkpoint could not be written. Anything else fails with a traceback.
    """
    warnings.showwarning = _show_warning
    try:
        main()
    except InputError as error:
        sys.exit(_say(error, BAD_INPUT))
    except CheckpointWriteError as error:
        sys.exit(_say(error, FAILED))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command goes on from the newest checkpoint", INTERRUPTED))


def _say(message, code):
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr, flush=True)
