"""Process control on Linux: parent-death signals, subreapers, process groups, /proc.

Source: prctl(2) for PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER, proc(5) for /proc/PID/stat and status.
"""

import contextlib
import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
RESET = (*FORWARDED, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ)  # signals whose effect Python or the agent has changed
CANNOT_EXECUTE = 126
SWEEP = 0.005  # seconds between two checks of processes that are about to end


def become_subreaper() -> None:
    """Makes orphaned descendants, daemons included, children of this process instead of init."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def request_signal_at_parents_death(number: int) -> None:
    """Requests a signal for the death of the parent thread. The parent may be dead already: check `os.getppid`."""
    _prctl(PR_SET_PDEATHSIG, number)


def spawn(
    command: list[str],
    environment: Mapping[str, str],
    output: int,
    ignored: Iterable[int] = (),
    cores: Collection[int] | None = None,
) -> int:
    """Starts a rank in its own process group, without standard input. The kernel kills it when this process dies.

    Args:
        command: the command; its first word is an absolute path.
        environment: the complete environment.
        output: the descriptor for standard output and standard error.
        ignored: signals that the rank ignores until it installs a handler; other signals have their default effect.
        cores: the cores that the rank and its children run on; None: the cores of this process.

    Returns:
        The process id, which is also the id of the process group.
    """
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, RESET)  # until the child has set their effects
    # Remove this process's handlers before the fork, because `catches` would mistake them for handlers of the rank.
    effects = {number: signal.SIG_IGN if number in ignored else signal.SIG_DFL for number in RESET}
    handlers = {number: signal.signal(number, effect) for number, effect in effects.items()}
    try:
        child = os.fork()
        if child:
            with contextlib.suppress(OSError):  # the child calls setpgid too; this call fails if the child has already called exec
                os.setpgid(child, child)
            return child
    finally:
        if os.getpid() == parent:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.setpgid(0, 0)
        request_signal_at_parents_death(signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(CANNOT_EXECUTE)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if cores is not None:
            os.sched_setaffinity(0, cores)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execve(command[0], command, environment)
    except BaseException as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(CANNOT_EXECUTE)


def descendants(ancestor: int, spared: Collection[int] = ()) -> list[int]:
    """Returns all descendants of a process, in any session and process group.

    Args:
        ancestor: the process id.
        spared: processes to leave out, with their descendants.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = _stat(int(name))
            if fields and int(name) not in spared:
                children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(ancestor, []))
    for pid in found:  # the list grows during the loop
        found += children.get(pid, [])
    return found


def end_descendants(
    seconds: float = float("inf"), clock: Callable[[], float] = time.monotonic, spared: Collection[int] = ()
) -> None:
    """Kills all descendants of this process, a subreaper, and waits for their end.

    Args:
        seconds: how long to wait, because a process with a hanging disk does not die.
        clock: returns the time in seconds.
        spared: processes to leave out, with their descendants.
    """
    deadline = clock() + seconds
    while left := descendants(os.getpid(), spared):
        send(left, signal.SIGKILL)
        reap()
        if clock() >= deadline:
            return
        time.sleep(SWEEP)


def reap() -> None:
    """Reaps all children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def open_pidfd(pid: int) -> int | None:
    """Returns a descriptor that becomes readable when the process ends; None before Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def is_stopped(pid: int) -> bool:
    """Returns whether SIGSTOP has stopped a process. A process that a debugger holds is in another state, `t`."""
    fields = _stat(pid)
    return bool(fields) and fields[0] == "T"


def catches(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    try:
        with open(f"/proc/{pid}/status") as file:
            caught = next(line for line in file if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def send(pids: Iterable[int], number: int) -> None:
    """Sends a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def send_to_groups(groups: Iterable[int], number: int) -> None:
    """Sends a signal to each process group that still exists, and continues stopped processes."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            os.killpg(group, signal.SIGCONT)


def forbid_core_dumps(pids: Iterable[int]) -> None:
    """Prevents core files of processes that are about to be aborted."""
    for pid in pids:
        with contextlib.suppress(OSError):
            hard = resource.prlimit(pid, resource.RLIMIT_CORE)[1]
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, hard))


def out_of_memory_kills() -> int:
    """Returns how many processes this kernel has killed because memory ran out; 0 if unknown."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _stat(pid):
    """Returns the fields of /proc/PID/stat from the state on; the name before it may contain any character."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return []


def _prctl(option, value):
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
