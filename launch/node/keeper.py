"""The keeper: the process between launcher and agent, which kills the processes that a dead agent leaves behind.

Launcher and agent may be killed at the same moment, by `pkill -9 -f 'python -m launch'` or because memory runs out. The kernel then
kills the ranks, but not the processes that the ranks have started. The keeper is a subreaper: it adopts these processes and kills
them. Its command line differs from the launcher's, and it blocks all signals that can be blocked.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from launch import exit_codes, processes

PATIENCE = 30.0  # seconds until an agent without a launcher must have ended; the ranks get 3 of them
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from launch.node import keeper; keeper.keep(*map(int, sys.argv[2:]))"


def fork_under_keeper() -> int:
    """Forks twice: the child becomes the keeper, and the grandchild returns.

    Returns:
        The process id of the keeper in the caller; 0 in the grandchild.
    """
    launcher = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()  # signals to the launcher's process group or terminal must not reach its children
        processes.become_subreaper()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        agent = os.fork()
    except OSError:
        os._exit(exit_codes.FAILED)
    if agent:
        _become_keeper(agent, launcher)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return 0


def _become_keeper(agent: int, launcher: int) -> NoReturn:
    try:
        processes.request_signal_at_parents_death(signal.SIGUSR1)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # so that a reader of the launcher's output does not wait for this process
            os.dup2(null, descriptor)
        root = str(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", _PROGRAM, root, str(agent), str(launcher)])
    finally:
        os._exit(exit_codes.FAILED)


def keep(agent: int, launcher: int, clock: Callable[[], float] = time.monotonic) -> None:
    """Waits until the agent ends, then kills its remaining descendants.

    Also kills an agent that outlives the launcher for too long, because it was stopped or its log is on a hanging disk.

    Args:
        agent: the process id of the agent, a child of this process.
        launcher: the process id of the launcher, the parent of this process.
        clock: returns the time in seconds.
    """
    deadline = None
    while not _has_ended(agent):
        if deadline is None and os.getppid() != launcher:
            deadline = clock() + PATIENCE
            processes.send([agent], signal.SIGCONT)
        left = 3600.0 if deadline is None else deadline - clock()
        if left <= 0:
            break
        with contextlib.suppress(InterruptedError):
            signal.sigtimedwait(signal.valid_signals(), left)  # all are blocked; any of them triggers the next check
    processes.end_descendants()


def _has_ended(child):
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            if pid == child:
                return True
    except ChildProcessError:
        return True
    return False
