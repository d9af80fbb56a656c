"""One run at a time on a template: who holds it, and when a holder counts as dead."""

import atexit
import contextlib
import glob
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime

from callbacks.errors import InputError
from callbacks.regular_file import open_regular
from callbacks.training_loop import Loop

SILENCE = 60  # seconds without a sign of life after which a holder counts as dead, on whatever host
_HEARTBEAT = 15
_WAKE_UP = 1  # seconds between two looks at the training loop
_MORE_THAN_ANY_PID = 1 << 31
_LONGEST = 1 << 16  # bytes of a lock file that are read
_acquiring = threading.Lock()
_held: dict[str, "Lock"] = {}  # by token: the locks that this process has taken


@dataclass(frozen=True)
class Owner:
    """A process that holds a template, as the lock file names it.

    Args:
        host: its host's name.
        pid: its process id, in its PID namespace.
        started: when that process started, in clock ticks since the host's start: a pid is used again, the pair is not.
        job: the Slurm job, the same through all requeues; empty without Slurm.
        restart: which attempt of the job.
        since: when it took the lock, for the message.
        boot: the id of the host's boot. Empty in a lock file of an older version, as are the next two.
        pid_namespace: the namespace that `pid` counts in. Two containers may have one host name and equal pids.
        token: differs for each lock that is taken, also by one process.
    """

    host: str
    pid: int
    started: int
    job: str
    restart: int
    since: str
    boot: str = ""
    pid_namespace: str = ""
    token: str = ""

    @classmethod
    def this_process(cls) -> "Owner":
        """The owner that this process would be."""
        environment = os.environ
        job = environment.get("SLURM_ARRAY_JOB_ID", environment.get("SLURM_JOB_ID", ""))
        restart = environment.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            job=f"{job}_{environment['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_TASK_ID" in environment else job,
            restart=int(restart) if restart.isdecimal() else 0,
            since=datetime.now().isoformat(" ", "seconds"),
            boot=_boot(),
            pid_namespace=_pid_namespace(),
            token=uuid.uuid4().hex,
        )

    @classmethod
    def from_json(cls, content: bytes) -> "Owner | None":
        """The owner that a lock file names; None where the file is of an unknown version, or was cut off by a crash."""
        try:
            stored = json.loads(content)
            owner = cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})
        except (ValueError, TypeError, RecursionError):
            return None
        is_typed = all(type(getattr(owner, field.name)) is field.type for field in fields(cls))
        return owner if is_typed and 0 < owner.pid < _MORE_THAN_ANY_PID else None

    @property
    def pid_space(self) -> str:
        """What its pid counts in, as the names of temporary files give it: the host and the PID namespace."""
        return _pid_space(self.host, self.pid_namespace)

    def shares_pids_with(self, other: "Owner") -> bool:
        """Whether both count pids in one namespace of one boot, so that each can see whether the other is there."""
        same_boot = self.boot == other.boot and self.pid_namespace == other.pid_namespace
        return self.host == other.host and (same_boot or not (self.boot and other.boot))  # an older version names the host only

    def is_process_of(self, other: "Owner") -> bool:
        """Whether both are one process."""
        return self.shares_pids_with(other) and (self.pid, self.started) == (other.pid, other.started)


class LockLost(RuntimeError):
    """The lock was taken from this process while it lived."""


class Lock:
    """The lock of a template: a hidden file beside its checkpoints.

    Args:
        template: the template's text.
        directory: where the lock file goes.
    """

    def __init__(self, template: str, directory: str):
        self._template = template
        name = hashlib.sha256(os.path.basename(template).encode()).hexdigest()[:12]
        self.path = os.path.join(directory, f".lock-{name}")
        self._released = threading.Event()
        self._owner: Owner | None = None
        self._loop = Loop(threading.get_ident())
        self.taken_from: Owner | None = None  # whoever held it before, and counts as dead, but may not know that

    def acquire(self, loop: Loop | None = None, finish: Callable[[], None] = lambda: None) -> None:
        """Takes the lock, from a dead holder too, and shows a sign of life until `release`.

        The lock is also released when the training loop has ended without a `release`, by an exception say.

        Args:
            loop: the training loop that needs the lock; by default all that this thread runs.
            finish: called before a lock is released whose loop has failed: waits for what is still being written.

        Raises:
            InputError: if a living run holds it, or if the lock file cannot be read or written.
        """
        self._loop, self._finish = loop or Loop(threading.get_ident()), finish
        mine = Owner.this_process()
        with _acquiring, self._naming(InputError, ". Use another template or directory."):
            holder = self._read()
            if holder is not None:
                self._refuse_living(holder, mine)
            if not self._write(mine) or self._read() != mine:  # somebody else took it from the dead at the same moment
                raise InputError(
                    f"{self._template} was taken by another run at this very moment. Use another template or directory."
                )
            if holder is not None and holder.token in _held:
                _held.pop(holder.token)._released.set()  # its loop has ended, and its heartbeat has not
            _held[mine.token] = self
        self.taken_from, self._owner = holder, mine
        self._sweep()
        self._released.clear()
        threading.Thread(target=self._show_life, name="checkpoint-lock", daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """To be called before anything of the run is changed.

        Raises:
            LockLost: if somebody else has taken the lock: this process was taken for dead. Also if the lock cannot be read.
        """
        with self._naming(LockLost):
            holder = self._read()
        if holder is None:
            raise LockLost(f"the lock {self.path} is gone, so a later life of this run has begun and ended")
        if holder != self._owner:
            raise LockLost(f"process {holder.pid} on {holder.host}, a later life of this run, has taken over at {holder.since}")

    def release(self) -> None:
        """Gives the lock back, if it is still ours; more than once does no harm."""
        with _acquiring:
            if self._owner is None:
                return
            self._released.set()
            with contextlib.suppress(OSError):
                if self._read() == self._owner:
                    os.unlink(self.path)
            _held.pop(self._owner.token, None)
            self._owner = None
        atexit.unregister(self.release)

    def _refuse_living(self, holder, mine):
        if holder.is_process_of(mine):
            other = _held.get(holder.token)
            if other is not None and other._loop.excludes(self._loop):
                raise InputError(
                    f"{self._template} is in use by another training loop of this process, since {holder.since}. "
                    "Wait for its end, or use another template or directory."
                )
        elif not is_dead(holder, mine, self._silent_for()):
            raise InputError(
                f"{self._template} is in use by another run: process {holder.pid} on {holder.host}, since {holder.since}. "
                f"{self._advice(holder, mine)} (It counts as dead after {SILENCE} s without a sign of life.)"
            )

    def _advice(self, holder, mine):
        array, _, element = mine.job.partition("_")
        if element and holder.job.startswith(f"{array}_"):
            return f"It is element {holder.job} of the same job array: give each element a directory of its own."
        return "Stop it, or use another template or directory."

    def _show_life(self):
        shown = time.monotonic()
        while not self._released.wait(min(_WAKE_UP, _HEARTBEAT)):
            if not self._loop.is_running:
                self._finish()
                self.release()
            elif time.monotonic() - shown >= _HEARTBEAT:
                shown = time.monotonic()
                with contextlib.suppress(OSError):  # the file system may answer again at the next heartbeat
                    if self._read() == self._owner:
                        os.utime(self.path)

    @contextlib.contextmanager
    def _naming(self, kind: type[Exception], advice: str = "") -> Iterator[None]:
        """Turns an error of the file system into one line that names the lock."""
        try:
            yield
        except OSError as error:
            raise kind(f"The lock {self.path} cannot be read or written: {error.strerror or error}{advice}") from None

    def _read(self):
        try:
            with open_regular(self.path) as file:
                return Owner.from_json(file.read(_LONGEST))
        except FileNotFoundError:
            return None

    def _write(self, owner):
        temporary = f"{self.path}.{owner.token}"
        try:
            with open(temporary, "x") as file:  # with the mode of the umask: a group shares its directories
                json.dump(asdict(owner), file)
            os.replace(temporary, self.path)
        except FileNotFoundError:  # swept away by whoever has the lock now
            return False
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return True

    def _sweep(self):
        """Removes what a process left that was killed while it took this lock."""
        for path in glob.glob(f"{glob.escape(self.path)}.*"):
            with contextlib.suppress(OSError):  # gone, or another user's in a sticky directory
                os.unlink(path)

    def _silent_for(self):
        """Seconds since the holder's last sign of life, by the file system's clock: hosts disagree about the time."""
        directory, name = os.path.split(self.path)
        with tempfile.NamedTemporaryFile(prefix=f"{name}.", dir=directory or ".") as now:
            try:
                # A sign of life from the future is old too: the clock was set back since.
                return abs(os.fstat(now.fileno()).st_mtime - os.stat(self.path).st_mtime)
            except FileNotFoundError:  # released meanwhile
                return float("inf")


def is_dead(holder: Owner, mine: Owner, silent_for: float) -> bool:
    """Whether a holder is no obstacle.

    Args:
        holder: who is named in the lock.
        mine: this process.
        silent_for: seconds since its last sign of life.

    Returns:
        True for a process of this boot and PID namespace that has ended, for an earlier attempt of the same Slurm job, and for
        any process that has been silent for `SILENCE` seconds.
    """
    earlier_attempt = bool(holder.job) and holder.job == mine.job and holder.restart < mine.restart
    ended = holder.shares_pids_with(mine) and not _is_alive(holder)
    return earlier_attempt or ended or silent_for > SILENCE


def pid_space() -> str:
    """What the pids of this process count in: the host and the PID namespace. Two containers may have one host name."""
    return _pid_space(socket.gethostname(), _pid_namespace())


def _pid_space(host, namespace):
    return f"{host}-{namespace.strip('pid:[]')}"


def is_running(pid: int) -> bool:
    """Whether this PID namespace has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _is_alive(owner):
    return is_running(owner.pid) and _started(owner.pid) in (owner.started, None)  # /proc may hide another user's processes


def _started(pid: int) -> int | None:
    """A process's start in clock ticks since the host's (proc(5), field 22); None where /proc shows no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _boot():
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_namespace():
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
