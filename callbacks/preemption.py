"""Stops training after a signal, or before the job's time ends.

Cluster managers signal a job before they take its nodes, and people press Ctrl-C. After a call of `catch_signals`, a signal
handler only notes that a stop is requested. Between two batches `GlobalStepCheckpoint` sees the note, saves, and raises
`Preempted`. Without `catch_signals`, signals have their usual effect.

| signal | meaning | exit code |
|---|---|---|
| USR1, USR2 | save and requeue the run | 75, `EX_TEMPFAIL` of sysexits(3) |
| TERM | save and end, for example a cancelled job | 143 |
| HUP | the terminal is closed: as TERM; stays ignored under `nohup` | 143 |
| INT | Ctrl-C: save and end; a second one ends the process at once | 130 |

`KeyboardInterrupt` in the middle of a batch cannot replace this: TensorFlow may turn it into another exception or abort the
process, and other ranks would wait forever.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

REQUEUE = os.EX_TEMPFAIL
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CODES = {
    signal.SIGUSR1: REQUEUE,
    signal.SIGUSR2: REQUEUE,
    signal.SIGINT: INTERRUPTED,
    signal.SIGTERM: TERMINATED,
    signal.SIGHUP: TERMINATED,
}
BY_PRIORITY = (REQUEUE, INTERRUPTED, TERMINATED)  # after several signals the first of these counts, since a requeue is a promise
READER_WAIT = 200  # milliseconds; the reader of a pipe ends a moment after the signal
TIME_TO_STOP = 10  # seconds beside the save, to agree with other ranks and to end
JOB_END = "SLURM_JOB_END_TIME"  # seconds since 1970

_requested = 0  # the exit code; 0 if no stop is requested
_reason = ""
_training = _interrupted = False
_job_end: float | None = None
_begun: list[Callable[[], bool]] = []  # whether each training that has begun still runs; a callback may train another model
_replaced: dict[int, Any] = {}  # signal -> its earlier handler; empty while signals are not caught
_wakeup: int | None = None  # descriptor that signals are written to; None before `catch_signals`
_for_good = False


class Preempted(SystemExit):
    """Training has stopped on request. If nothing catches it, the process ends with its exit code.

    Args:
        code: 75, 130 or 143.
        path: the newest checkpoint, from which the next run resumes; None if nothing was trained yet.
        reason: why the run stops, for messages: "by TERM".
    """

    def __init__(self, code: int, path: str | None, reason: str):
        super().__init__(code)
        self.path = path
        self.reason = reason


def catch_signals(for_good: bool = False) -> None:
    """Catches USR1, USR2, TERM, HUP and INT from now on, and reads when the job ends. Call it in the main thread.

    Before `training_begins` there is nothing to save, so a signal ends the process at once. A thread does that, because Python's
    handlers do not run while the main thread is inside a library, for example waiting for other ranks. After training, the earlier
    handlers are restored until the next training begins.

    Args:
        for_good: whether signals stay caught after training, for programs that only train.
    """
    global _job_end, _wakeup, _for_good
    _job_end = _end_of_job(os.environ.get(JOB_END, ""))
    _for_good = for_good
    if _wakeup is None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        _wakeup = writer.detach()
        threading.Thread(target=_end_at_once, args=(reader,), name="signals", daemon=True).start()
    _catch()


def ignore_signals() -> None:
    """Ignores later signals, and discards output that nobody reads. Call it only when the exit code is final."""
    if signal.getsignal(signal.SIGTERM) is _note and threading.current_thread() is threading.main_thread():
        _discard_unread_output(wait=0)
        for number in CODES:
            signal.signal(number, signal.SIG_IGN)


def training_begins(is_running: Callable[[], bool] = lambda: True) -> None:
    """Makes signals request a stop from now on, since other ranks and files depend on this process.

    Args:
        is_running: returns whether this training still runs, since it may fail before `training_ends`. By default, signals
            request a stop until the process ends.
    """
    global _training, _begun, _interrupted
    _training, _begun, _interrupted = True, [*(each for each in _begun if each()), is_running], False
    if _wakeup is not None and threading.current_thread() is threading.main_thread():
        _catch()


def training_ends() -> None:
    """Restores the handlers from before `catch_signals`, unless another training of this process still runs."""
    global _training
    if _for_good or _wakeup is None or _runs() or threading.current_thread() is not threading.main_thread():
        return
    replaced = dict(_replaced)
    _replaced.clear()
    _training = False
    signal.set_wakeup_fd(-1)
    for number, handler in replaced.items():
        if signal.getsignal(number) is _note and handler is not None:  # None: not Python's
            signal.signal(number, handler)


def request_stop(code: int, reason: str) -> None:
    """Requests that training stops after a save.

    Args:
        code: the exit code.
        reason: the reason, for messages.
    """
    global _requested, _reason
    _requested = next(each for each in BY_PRIORITY if each in (code, _requested))
    _reason = _reason or reason


def stop_requested() -> int:
    """Returns the exit code of a requested stop of this process, or 0. `callbacks.ranks` has the code of all ranks."""
    return _requested


def reason(code: int) -> str:
    """Returns why the run stops, for messages: the reason of this process, or else that of another rank.

    Args:
        code: the exit code that all ranks agreed on.
    """
    names = " or ".join(number.name.removeprefix("SIG") for number, its_code in CODES.items() if its_code == code)
    return _reason or f"by {names} on another rank"


def request_stop_before_job_ends(seconds: float) -> None:
    """Requests a stop if the job ends so soon that a later save might not finish.

    Args:
        seconds: the longest duration of a save.
    """
    if _job_end is not None and (left := _job_end - time.time()) < TIME_TO_STOP + seconds:
        request_stop(REQUEUE, f"because the job ends in {max(left, 0):.0f} s")


def _end_of_job(value: str) -> float | None:
    """Returns the end of this job, in seconds since 1970; None if unknown. The variable may be inherited from an earlier job."""
    if not value.isdecimal():
        return None
    if float(value) < time.time():
        warnings.warn(
            f"{JOB_END}={value} is in the past, so it belongs to another job. This run does not know when its job ends.",
            stacklevel=3,
        )
        return None
    return float(value)


def _catch() -> None:
    assert _wakeup is not None
    signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)
    for number in CODES:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:  # by nohup
            continue
        before = signal.signal(number, _note)
        if before is not _note:
            _replaced[number] = before


def _runs() -> bool:
    return any(is_running() for is_running in _begun)


def _note(number: int, frame: FrameType | None) -> None:
    if _begun and not _runs() and not _for_good:  # training has failed
        training_ends()
        os.kill(os.getpid(), number)
    else:
        wait = 0 if _requested else READER_WAIT  # once, since many signals may come
        name = signal.Signals(number).name.removeprefix("SIG")
        request_stop(CODES[signal.Signals(number)], f"by {name}")
        _discard_unread_output(wait)


def _discard_unread_output(wait: int) -> None:
    """Discards later output if the terminal is closed or the reader of a pipe has ended, as in `python train.py | tee log`.

    Each write would fail, and end training without a save. Since the next write may come before the save, the handler waits for
    readers that the same signal ends.

    Args:
        wait: how long a reader may take to end, in milliseconds.
    """
    for descriptor in (1, 2):
        output = select.poll()
        output.register(descriptor, 0)  # no event but the loss of the reader
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(wait)):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), descriptor)


def _end_at_once(reader: socket.socket) -> None:
    global _interrupted
    while True:
        for number in reader.recv(64):
            if not (number in CODES and _replaced):  # the earlier handlers are restored meanwhile
                continue
            if not _training:
                name = signal.Signals(number).name
                _exit_at_once(number, f"stopped by {name} before training began; the same command starts it")
            if number == signal.SIGINT and _interrupted:
                _exit_at_once(number, "interrupted twice; the same command resumes from the newest checkpoint")
            _interrupted |= number == signal.SIGINT


def _exit_at_once(number: int, why: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal
        os.write(2, f"{why}\n".encode())
    os._exit(CODES[signal.Signals(number)])
