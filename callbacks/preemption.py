"""Being asked to leave: by a signal, or by the end of the job that is near.

Cluster managers signal a job before they take its nodes, and people press Ctrl-C. `catch_signals` lets that reach training: a
handler does nothing but note the signal, `GlobalStepCheckpoint` looks at the note between two batches, saves, and leaves with
`Preempted`. Without a call of `catch_signals` signals do what they always did.

| signal | meaning | exit code |
|---|---|---|
| USR1, USR2 | a warning: the run is to be started again | 75, `EX_TEMPFAIL` of sysexits(3) |
| TERM | the end, of a cancelled job say | 143 |
| INT | Ctrl-C; the second one ends the process at once | 130 |

A `KeyboardInterrupt` in the middle of a batch would not do: it can come out of TensorFlow as another exception, or abort the
process there, and it leaves the other ranks waiting.
"""

import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

WARNED = os.EX_TEMPFAIL
INTERRUPTED = 128 + signal.SIGINT
ENDED = 128 + signal.SIGTERM
CODES = {signal.SIGUSR1: WARNED, signal.SIGUSR2: WARNED, signal.SIGINT: INTERRUPTED, signal.SIGTERM: ENDED}
BY_WEIGHT = (WARNED, INTERRUPTED, ENDED)  # of several reasons the first counts: a warning promises that the run is started again
TIME_TO_LEAVE = 10  # seconds that a run needs beside the save, to agree with other ranks and to end
JOB_END = "SLURM_JOB_END_TIME"  # seconds since 1970

_asked = 0
_reason = ""
_training = _interrupted = False
_job_end: float | None = None
_is_running: Callable[[], bool] | None = None  # whether training still runs
_replaced: dict[int, Any] = {}  # signal -> what it did before; empty while signals are not caught
_wakeup: int | None = None  # where signals are written to; None before `catch_signals`
_for_good = False


class Preempted(SystemExit):
    """Training was asked to leave, and has. Nobody has to catch it: it ends the process with the right exit code.

    Args:
        code: 75, 130 or 143.
        path: the newest checkpoint, from which the next run resumes; None if nothing was trained yet.
        reason: why the run leaves, for a message: "by TERM".
    """

    def __init__(self, code: int, path: str | None, reason: str):
        super().__init__(code)
        self.path = path
        self.reason = reason


def catch_signals(for_good: bool = False) -> None:
    """Catches USR1, USR2, TERM and INT from now on, and takes note of the job's end; to be called in the main thread.

    Until `training_begins` there is nothing to save, and a signal ends the process at once. A thread sees to that, because
    handlers of Python do not run while the main thread is in a library, waiting for other ranks say. When training has ended,
    signals do again what they did before, until the next training begins.

    Args:
        for_good: whether signals stay caught when training has ended, for programs that do nothing else.
    """
    global _job_end, _wakeup, _for_good
    _job_end = _end_of_job(os.environ.get(JOB_END, ""))
    _for_good = for_good
    if _wakeup is None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        _wakeup = writer.detach()
        threading.Thread(target=_leave_at_once, args=(reader,), name="signals", daemon=True).start()
    _catch()


def ignore_signals() -> None:
    """Has signals that come late do nothing: to be called when the exit code is decided, and no earlier."""
    if signal.getsignal(signal.SIGTERM) is _note:
        for number in CODES:
            signal.signal(number, signal.SIG_IGN)


def training_begins(is_running: Callable[[], bool] | None = None) -> None:
    """From now on a signal is only noted, because other ranks, or files, depend on this process.

    Args:
        is_running: whether this training still runs, which may fail without a call of `training_ends`; None for the whole life
            of the process.
    """
    global _training, _is_running, _interrupted
    _training, _is_running, _interrupted = True, is_running, False
    if _wakeup is not None and threading.current_thread() is threading.main_thread():
        _catch()


def training_ends() -> None:
    """Has signals do what they did before `catch_signals`."""
    global _training
    if _for_good or _wakeup is None or threading.current_thread() is not threading.main_thread():
        return
    replaced = dict(_replaced)
    _replaced.clear()
    _training = False
    signal.set_wakeup_fd(-1)
    for number, handler in replaced.items():
        if signal.getsignal(number) is _note and handler is not None:  # None: not Python's
            signal.signal(number, handler)


def ask(code: int, reason: str) -> None:
    """Notes that this process is to leave.

    Args:
        code: the exit code.
        reason: why, for a message.
    """
    global _asked, _reason
    _asked = next(each for each in BY_WEIGHT if each in (code, _asked))
    _reason = _reason or reason


def asked() -> int:
    """The exit code with which this process was asked to leave, or 0. What all ranks agree on: `callbacks.ranks`."""
    return _asked


def reason(code: int) -> str:
    """Why the run leaves, for a message: the reason that this process was given, or else what another rank was sent.

    Args:
        code: the exit code that all ranks agreed on.
    """
    names = " or ".join(number.name.removeprefix("SIG") for number, its_code in CODES.items() if its_code == code)
    return _reason or f"by {names} on another rank"


def ask_before_job_ends(seconds: float) -> None:
    """Notes that this process is to leave if its job ends so soon that a save would be cut off.

    Args:
        seconds: what a save may take.
    """
    if _job_end is not None and (left := _job_end - time.time()) < TIME_TO_LEAVE + seconds:
        ask(WARNED, f"because the job ends in {max(left, 0):.0f} s")


def _end_of_job(told: str) -> float | None:
    """Returns the end of this job, in seconds since 1970; None if unknown. It may inherit the end of an earlier job."""
    if not told.isdecimal():
        return None
    if float(told) < time.time():
        warnings.warn(f"{JOB_END}={told} is past, so it is another job's. This run does not know when its job ends.", stacklevel=3)
        return None
    return float(told)


def _catch() -> None:
    assert _wakeup is not None
    signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)
    for number in CODES:
        before = signal.signal(number, _note)
        if before is not _note:
            _replaced[number] = before


def _note(number: int, frame: FrameType | None) -> None:
    if _is_running is not None and not _is_running() and not _for_good:  # training has failed
        training_ends()
        os.kill(os.getpid(), number)
    else:
        name = signal.Signals(number).name.removeprefix("SIG")
        ask(CODES[signal.Signals(number)], f"by {name}")


def _leave_at_once(reader: socket.socket) -> None:
    global _interrupted
    while True:
        for number in reader.recv(64):
            if not (number in CODES and _replaced):  # signals are given back meanwhile
                continue
            if not _training:
                name = signal.Signals(number).name
                _exit_at_once(number, f"stopped by {name} before training began; the same command starts it")
            if number == signal.SIGINT and _interrupted:
                _exit_at_once(number, "interrupted twice; the same command resumes from the newest checkpoint")
            _interrupted |= number == signal.SIGINT


def _exit_at_once(number: int, why: str) -> None:
    os.write(2, f"{why}\n".encode())
    os._exit(CODES[signal.Signals(number)])
