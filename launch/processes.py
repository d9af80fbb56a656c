"""What Linux offers to keep a family of processes together: parent-death signals, subreapers, process groups, /proc.

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
RESET = (*FORWARDED, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ)  # those that Python or the agent has changed
CANNOT_EXECUTE = 126
SWEEP = 0.005  # seconds between two looks at processes that are about to end


def become_subreaper() -> None:
    """Descendants whose parent dies, daemons too, become children of this process and not of init."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def request_signal_at_parents_death(number: int) -> None:
    """This process gets the signal when the thread that forked it ends. It may have ended already: see `os.getppid`."""
    _prctl(PR_SET_PDEATHSIG, number)


def spawn(
    command: list[str],
    environment: Mapping[str, str],
    output: int,
    ignored: Iterable[int] = (),
    cores: Collection[int] | None = None,
) -> int:
    """Starts a rank: in a process group of its own, killed when this process dies, reading nothing.

    Args:
        command: what to execute, the first an absolute path.
        environment: all of its environment.
        output: descriptor for its standard output and error.
        ignored: signals that it ignores until it has a handler; the others have their default effect.
        cores: those that it and its children may run on; None: this process's.

    Returns:
        Its process id, which is its group's too.
    """
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, RESET)  # until the rank decides what they do
    # The child is forked without this process's handlers: `catches` would take them for the rank's, and a signal would kill it.
    effects = {number: signal.SIG_IGN if number in ignored else signal.SIG_DFL for number in RESET}
    handlers = {number: signal.signal(number, effect) for number, effect in effects.items()}
    try:
        child = os.fork()
        if child:
            with contextlib.suppress(OSError):  # the child does the same; the later of the two may find it executing
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
        if os.getppid() != parent:  # it died before the call above
            os._exit(CANNOT_EXECUTE)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if cores is not None:
            os.sched_setaffinity(0, cores)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execve(command[0], command, environment)
    except BaseException as error:
        os.write(2, f"{command[0]} could not be started: {error}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(CANNOT_EXECUTE)


def descendants(ancestor: int, spared: Collection[int] = ()) -> list[int]:
    """Every process below this one, whatever sessions and groups they made for themselves.

    Args:
        ancestor: a process id.
        spared: processes that are left out, with all below them.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = _stat(int(name))
            if fields and int(name) not in spared:
                children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(ancestor, []))
    for pid in found:  # it grows while it is read
        found += children.get(pid, [])
    return found


def end_descendants(
    seconds: float = float("inf"), clock: Callable[[], float] = time.monotonic, spared: Collection[int] = ()
) -> None:
    """Kills everything below this process, a subreaper, and waits until it is gone.

    Args:
        seconds: how long to wait: a process whose disk hangs does not die.
        clock: seconds.
        spared: processes that are left alone, with all below them.
    """
    deadline = clock() + seconds
    while left := descendants(os.getpid(), spared):
        send(left, signal.SIGKILL)
        reap()
        if clock() >= deadline:
            return
        time.sleep(SWEEP)


def reap() -> None:
    """Takes the exit of each child that ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None before Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def is_stopped(pid: int) -> bool:
    """Somebody sent it SIGSTOP, or it is traced."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in ("T", "t")


def catches(pid: int, number: int) -> bool:
    """The process has a handler for the signal."""
    try:
        with open(f"/proc/{pid}/status") as file:
            caught = next(line for line in file if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def send(pids: Iterable[int], number: int) -> None:
    """Sends a signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def send_to_groups(groups: Iterable[int], number: int) -> None:
    """Sends a signal to each process group that is still there, and wakes it if it was stopped."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            os.killpg(group, signal.SIGCONT)


def forbid_core_dumps(pids: Iterable[int]) -> None:
    """Processes that are about to be aborted leave no core files."""
    for pid in pids:
        with contextlib.suppress(OSError):
            hard = resource.prlimit(pid, resource.RLIMIT_CORE)[1]
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, hard))


def out_of_memory_kills() -> int:
    """How often this machine's kernel has killed a process for want of memory; 0 where it does not say."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _stat(pid):
    """State, parent and what follows of /proc/PID/stat, after the name, which may hold anything."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return []


def _prctl(option, value):
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
