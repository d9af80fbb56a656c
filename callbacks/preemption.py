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
from types import FrameType

WARNED = os.EX_TEMPFAIL
INTERRUPTED = 128 + signal.SIGINT
ENDED = 128 + signal.SIGTERM
CODES = {signal.SIGUSR1: WARNED, signal.SIGUSR2: WARNED, signal.SIGINT: INTERRUPTED, signal.SIGTERM: ENDED}
BY_WEIGHT = (WARNED, INTERRUPTED, ENDED)  # of several reasons the first counts: a warning promises that the run is started again
TIME_TO_LEAVE = 10  # seconds that a run needs beside the save, to agree with other ranks and to end
JOB_END = "SLURM_JOB_END_TIME"  # seconds since 1970

_asked = 0
_training = False
_job_end: float | None = None


class Preempted(SystemExit):
    """Training was asked to leave, and has. Nobody has to catch it: it ends the process with the right exit code.

    Args:
        code: 75, 130 or 143.
        path: the newest checkpoint, from which the next run goes on; None where nothing was trained yet.
    """

    def __init__(self, code: int, path: str | None):
        super().__init__(code)
        self.path = path


def catch_signals() -> None:
    """Catches USR1, USR2, TERM and INT from now on, and takes note of the job's end; to be called in the main thread.

    Until `training_begins` there is nothing to save, and a signal ends the process at once. A thread sees to that, because
    handlers of Python do not run while the main thread is in a library, waiting for other ranks say.
    """
    global _job_end
    told = os.environ.get(JOB_END, "")
    _job_end = float(told) if told.isdecimal() else None
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for number in CODES:
        signal.signal(number, _note)
    threading.Thread(target=_leave_at_once, args=(reader,), name="signals", daemon=True).start()


def ignore_signals() -> None:
    """Has signals that come late do nothing: to be called when the exit code is decided, and no earlier."""
    if signal.getsignal(signal.SIGTERM) is _note:
        for number in CODES:
            signal.signal(number, signal.SIG_IGN)


def training_begins() -> None:
    """From now on a signal is only noted, because other ranks, or files, depend on this process."""
    global _training
    _training = True


def ask(code: int) -> None:
    """Notes that this process is to leave."""
    global _asked
    _asked = next(each for each in BY_WEIGHT if each in (code, _asked))


def asked() -> int:
    """The exit code with which this process was asked to leave, or 0. What all ranks agree on: `callbacks.ranks`."""
    return _asked


def ask_before_job_ends(seconds: float) -> None:
    """Notes that this process is to leave if its job ends so soon that a save would be cut off.

    Args:
        seconds: what a save may take.
    """
    if _job_end is not None and _job_end - time.time() < TIME_TO_LEAVE + seconds:
        ask(WARNED)


def _note(number: int, frame: FrameType | None) -> None:
    ask(CODES[signal.Signals(number)])


def _leave_at_once(reader: socket.socket) -> None:
    interrupted = False
    while True:
        for number in reader.recv(64):
            if number in CODES and not _training:
                name = signal.Signals(number).name
                _exit_at_once(number, f"stopped by {name} before training began; the same command starts it")
            if number == signal.SIGINT and interrupted:
                _exit_at_once(number, "interrupted twice; the same command goes on from the newest checkpoint")
            interrupted |= number == signal.SIGINT


def _exit_at_once(number: int, why: str) -> None:
    os.write(2, f"{why}\n".encode())
    os._exit(CODES[signal.Signals(number)])
