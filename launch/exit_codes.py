"""The exit codes of ranks and of the launcher. No other code contains the numbers.

| code | constant | meaning | do all ranks restart? |
|---|---|---|---|
| 0 | `DONE` | training is complete | no |
| 1 | `FAILED` | any failure without a code of its own | yes |
| 2 | `BAD_INPUT` | a flag, a file or the environment is wrong | no |
| 69 | `ANOTHER_RANK_FAILED` | this rank lost another rank, which failed first; the launcher reports that rank | yes |
| 75 | `REQUEUE` | stopped by USR1 or USR2, or by the end of the job's time, after a saved checkpoint | no |
| 130 | `INTERRUPTED` | stopped by Ctrl-C after a saved checkpoint | no |
| 143 | `TERMINATED` | stopped by TERM or HUP after a saved checkpoint | no |
| 128 + n | `of_process(-n)` | killed by signal n | yes |

75, 130 and 143 are also used if nothing was trained yet. `callbacks/` imports nothing of this package and derives these three codes
from sysexits(3) and from the shell's rule for signals; `slurm/job.sh` repeats three codes. A test compares them with this table.
"""

import signal

DONE = 0
FAILED = 1
BAD_INPUT = 2
ANOTHER_RANK_FAILED = 69  # EX_UNAVAILABLE of sysexits(3)
REQUEUE = 75  # EX_TEMPFAIL of sysexits(3)
INTERRUPTED = 130
TERMINATED = 143

STOPPED = {REQUEUE, INTERRUPTED, TERMINATED}
NEVER_RESTARTED = {BAD_INPUT, *STOPPED}
AFTER_SIGNAL = {
    signal.SIGINT: INTERRUPTED,
    signal.SIGTERM: TERMINATED,
    signal.SIGHUP: TERMINATED,
    signal.SIGUSR1: REQUEUE,
    signal.SIGUSR2: REQUEUE,
}

HELP = f"""\
exit codes: {DONE} done; {BAD_INPUT} bad input; {REQUEUE} stopped by USR1 or USR2, {TERMINATED} by TERM or HUP,
{INTERRUPTED} by Ctrl-C, after a saved checkpoint; 128+n killed by signal n; otherwise the code of the rank that failed first.
{", ".join(map(str, sorted(NEVER_RESTARTED)))} are never restarted.
"""


def of_process(code: int) -> int:
    """Returns the exit code of a process as a shell reports it.

    Args:
        code: the return code as in `subprocess`, negative for a signal.

    Example:
        >>> of_process(-9)
        137
    """
    return code if code >= 0 else 128 - code
