"""The lock that allows one run at a time to write to a template, and when its owner counts as dead."""

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

from callbacks.disk.regular_file import open_regular
from callbacks.errors import InputError
from callbacks.model.training_loop import Loop

SILENCE = 60  # seconds without a heartbeat after which an owner counts as dead, on any host
_HEARTBEAT = 15
_WAKE_UP = 1  # seconds between checks of the training loop
_MORE_THAN_ANY_PID = 1 << 31
_LONGEST = 1 << 16  # most bytes to read from a lock file
_LONGEST_TEXT = 256  # characters
_acquiring = threading.Lock()
_held: dict[str, "Lock"] = {}  # token -> lock that this process has taken


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, as described in the lock file.

    Args:
        host: the name of its host.
        pid: its process id, in its PID namespace.
        started: the start of the process, in clock ticks since boot. Pids are reused, pairs of pid and start are not.
        job: the Slurm job, the same through all requeues; empty without Slurm.
        restart: the number of requeues of the job.
        since: when it took the lock, for messages.
        boot: the id of the host's boot. Empty in a lock file of an older version, as are the next two.
        pid_namespace: the namespace of `pid`. Two containers may have the same host name and equal pids.
        token: unique to each lock that is taken, even by the same process.
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
        """Returns the owner that describes this process."""
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
        """Returns the owner in a lock file; None if the version is unknown, or a crash has truncated the file."""
        try:
            stored = json.loads(content)
            owner = cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})
        except (ValueError, TypeError, RecursionError):
            return None
        is_typed = all(type(getattr(owner, field.name)) is field.type for field in fields(cls))
        texts = [each for each in vars(owner).values() if isinstance(each, str)]
        is_shown = all(each.isprintable() and len(each) < _LONGEST_TEXT for each in texts)  # messages name the owner
        return owner if is_typed and is_shown and 0 < owner.pid < _MORE_THAN_ANY_PID else None

    @property
    def pid_space(self) -> str:
        """The host and the PID namespace of its pid, as in the names of temporary files."""
        return _pid_space(self.host, self.pid_namespace)

    def shares_pids_with(self, other: "Owner") -> bool:
        """Returns whether both are in the same PID namespace and boot, so that each can see whether the other is alive."""
        same_boot = self.boot == other.boot and self.pid_namespace == other.pid_namespace
        return self.host == other.host and (same_boot or not (self.boot and other.boot))  # an older version has the host only

    def is_process_of(self, other: "Owner") -> bool:
        """Returns whether both are the same process."""
        return self.shares_pids_with(other) and (self.pid, self.started) == (other.pid, other.started)


class LockLost(RuntimeError):
    """Another run has taken the lock while this process was alive."""


class Lock:
    """The lock of a template: a hidden file beside its checkpoints.

    Args:
        template: the template's text.
        directory: the directory of the lock file.

    Attributes:
        taken_from: the earlier owner, which counts as dead but may be alive; None if there was none.
    """

    def __init__(self, template: str, directory: str):
        self._template = template
        name = hashlib.sha256(os.path.basename(template).encode()).hexdigest()[:12]
        self.path = os.path.join(directory, f".lock-{name}")
        self._released = threading.Event()
        self._owner: Owner | None = None
        self._loop = Loop()
        self._finish: Callable[[], None] = lambda: None
        self.taken_from: Owner | None = None

    def acquire(self, loop: Loop | None = None, finish: Callable[[], None] = lambda: None) -> None:
        """Takes the lock, also from a dead owner, and sends heartbeats until `release`.

        If the training loop ends without `release`, for example by an exception, the lock is released too.

        Args:
            loop: the training loop that needs the lock; by default, everything that this thread runs.
            finish: waits for writes in flight; called before the lock of a failed loop is released.

        Raises:
            InputError: if a living run holds the lock, or the lock file cannot be read or written.
        """
        self._loop, self._finish = loop or Loop(), finish
        mine = Owner.this_process()
        with _acquiring, self._naming(InputError, ". Use another template or directory."):
            holder = self._read()
            if holder is not None:
                self._refuse_living(holder, mine)
            if not self._write(mine) or self._read() != mine:  # another run took it from the dead owner at the same time
                raise InputError(f"{self._template} was just taken by another run. Use another template or directory.")
            if holder is not None and holder.token in _held:
                _held.pop(holder.token)._released.set()  # its loop has ended, but its heartbeat continues
            _held[mine.token] = self
        self.taken_from, self._owner = holder, mine
        self._sweep()
        self._released.clear()
        threading.Thread(target=self._send_heartbeats, name="checkpoint-lock", daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """Checks that this process still holds the lock. Call it before each change to the files of the run.

        Raises:
            LockLost: if another run has taken the lock since this process counted as dead, or the lock cannot be read.
        """
        with self._naming(LockLost):
            holder = self._read()
        if holder is None:
            raise LockLost(f"the lock {self.path} is gone, so a later attempt of this run has begun and ended")
        if holder != self._owner:
            raise LockLost(f"process {holder.pid} on {holder.host}, a later attempt of this run, took the lock at {holder.since}")

    def release(self) -> None:
        """Releases the lock if this process still holds it. Repeated calls, and calls in a forked process, do nothing."""
        with _acquiring:
            if self._owner is None or self._owner.pid != os.getpid():
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
                    "Wait until it ends, or use another template or directory."
                )
        elif not is_dead(holder, mine, self._silent_for()):
            raise InputError(
                f"{self._template} is in use by another run: process {holder.pid} on {holder.host}, since {holder.since}. "
                f"{self._advice(holder, mine)} (It counts as dead after {SILENCE} s without a heartbeat.)"
            )

    def _advice(self, holder, mine):
        array, _, element = mine.job.partition("_")
        if element and holder.job.startswith(f"{array}_"):
            return f"It is element {holder.job} of the same job array: give each element its own directory."
        return "Stop it, or use another template or directory."

    def _send_heartbeats(self):
        sent = time.monotonic()
        while not self._released.wait(min(_WAKE_UP, _HEARTBEAT)):
            if not self._loop.is_running:
                self._finish()
                self.release()
            elif time.monotonic() - sent >= _HEARTBEAT:
                sent = time.monotonic()
                with contextlib.suppress(OSError):  # the file system may work again at the next heartbeat
                    if self._read() == self._owner:
                        os.utime(self.path)

    @contextlib.contextmanager
    def _naming(self, kind: type[Exception], advice: str = "") -> Iterator[None]:
        """Turns an error of the file system into a message that names the lock."""
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
            with open(temporary, "x") as file:  # its mode follows the umask, since groups share directories
                json.dump(asdict(owner), file)
            os.replace(temporary, self.path)
        except FileNotFoundError:  # removed by the process that now has the lock
            return False
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return True

    def _sweep(self):
        """Removes the files of processes that were killed while they took this lock."""
        for path in glob.glob(f"{glob.escape(self.path)}.*"):
            with contextlib.suppress(OSError):  # gone, or owned by another user in a sticky directory
                os.unlink(path)

    def _silent_for(self):
        """Returns the seconds since the owner's last heartbeat, by the file system's clock, since hosts' clocks differ."""
        directory, name = os.path.split(self.path)
        with tempfile.NamedTemporaryFile(prefix=f"{name}.", dir=directory or ".") as now:
            try:
                # A heartbeat in the future is old too: the clock was set back.
                return abs(os.fstat(now.fileno()).st_mtime - os.stat(self.path).st_mtime)
            except FileNotFoundError:  # released meanwhile
                return float("inf")


def is_dead(holder: Owner, mine: Owner, silent_for: float) -> bool:
    """Returns whether the owner of a lock counts as dead.

    These count as dead: a process of this boot and PID namespace that has ended, an earlier attempt of the same Slurm job, and any
    process without a heartbeat for `SILENCE` seconds.

    Args:
        holder: the owner in the lock file.
        mine: this process.
        silent_for: seconds since the owner's last heartbeat.
    """
    earlier_attempt = bool(holder.job) and holder.job == mine.job and holder.restart < mine.restart
    ended = holder.shares_pids_with(mine) and not _is_alive(holder)
    return earlier_attempt or ended or silent_for > SILENCE


def pid_space() -> str:
    """Returns the host and the PID namespace of this process. Two containers may have the same host name."""
    return _pid_space(socket.gethostname(), _pid_namespace())


def _pid_space(host, namespace):
    return f"{host}-{namespace.strip('pid:[]')}"


def is_running(pid: int) -> bool:
    """Returns whether a process with this pid exists in this PID namespace."""
    if not 0 < pid < _MORE_THAN_ANY_PID:  # from the name of a file that anybody may have made
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it exists, and belongs to another user
    return True


def _is_alive(owner):
    return is_running(owner.pid) and _started(owner.pid) in (owner.started, None)  # /proc may hide another user's processes


def _started(pid: int) -> int | None:
    """Returns the start of a process in clock ticks since boot (proc(5), field 22); None if /proc does not show it."""
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
