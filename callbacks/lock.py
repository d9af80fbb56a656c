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
from dataclasses import asdict, dataclass
from datetime import datetime

from callbacks.errors import InputError

SILENCE = 60  # seconds without a sign of life after which a holder counts as dead, on whatever host
_HEARTBEAT = 15


@dataclass(frozen=True)
class Owner:
    """A process that holds a template, as its lock file tells.

    Args:
        host: its host's name.
        pid: its process id there.
        started: when that process started, in clock ticks since the host's start: a pid is used again, the pair is not.
        job: the Slurm job, the same through all requeues; empty without Slurm.
        restart: which life of the job.
        since: when it took the lock, for the message.
    """

    host: str
    pid: int
    started: int
    job: str
    restart: int
    since: str

    @classmethod
    def this_process(cls) -> "Owner":
        """The owner that this process would be."""
        environment = os.environ
        job = environment.get("SLURM_ARRAY_JOB_ID", environment.get("SLURM_JOB_ID", ""))
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            job=f"{job}_{environment['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_TASK_ID" in environment else job,
            restart=int(environment.get("SLURM_RESTART_COUNT", 0)),
            since=datetime.now().isoformat(" ", "seconds"),
        )


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
        self.taken_from: Owner | None = None  # whoever held it before, and counts as dead, but may not know that

    def acquire(self) -> None:
        """Takes the lock, from a dead holder too, and keeps showing a sign of life until `release`.

        Raises:
            InputError: if a living run holds it.
        """
        holder = self._read()
        mine = Owner.this_process()
        if holder is not None and not is_dead(holder, mine, self._silent_for()):
            raise InputError(
                f"{self._template} is in use by another run: process {holder.pid} on {holder.host}, since {holder.since}. "
                f"Stop it, or use another template or directory. (It counts as dead after {SILENCE} s without a sign of life.)"
            )
        self.taken_from = holder
        if not self._write(mine) or self._read() != mine:  # somebody else took it from the dead at the same moment
            raise InputError(f"{self._template} was taken by another run at this very moment. Use another template or directory.")
        self._owner = mine
        self._sweep()
        self._released.clear()
        threading.Thread(target=self._show_life, name="checkpoint-lock", daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """To be called before anything of the run is changed.

        Raises:
            LockLost: if somebody else has taken the lock: this process was taken for dead.
        """
        holder = self._read()
        if holder is None:
            raise LockLost(f"the lock {self.path} is gone, so a later life of this run has begun and ended")
        if holder != self._owner:
            raise LockLost(f"process {holder.pid} on {holder.host}, a later life of this run, has taken over at {holder.since}")

    def renew(self) -> None:
        """Writes the lock again, after its directory was removed and made again."""
        self._write(self._owner)

    def release(self) -> None:
        """Gives the lock back, if it is still ours; more than once does no harm."""
        if self._owner is None:
            return
        self._released.set()
        if self._read() == self._owner:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._owner = None
        atexit.unregister(self.release)

    def _show_life(self):
        while not self._released.wait(_HEARTBEAT):
            if self._read() == self._owner:
                with contextlib.suppress(OSError):
                    os.utime(self.path)

    def _read(self):
        try:
            with open(self.path) as file:
                return Owner(**json.load(file))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # written by a version that nobody knows, or cut off by a crash of the machine

    def _write(self, owner):
        directory, name = os.path.split(self.path)
        descriptor, temporary = tempfile.mkstemp(prefix=f"{name}.", dir=directory or ".")
        with open(descriptor, "w") as file:
            json.dump(asdict(owner), file)
        try:
            os.replace(temporary, self.path)
        except FileNotFoundError:  # swept away by whoever has the lock now
            return False
        return True

    def _sweep(self):
        """Removes what a process left that was killed while it took this lock."""
        for path in glob.glob(f"{glob.escape(self.path)}.*"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _silent_for(self):
        """Seconds since the holder's last sign of life, by the file system's clock: hosts disagree about the time."""
        directory, name = os.path.split(self.path)
        with tempfile.NamedTemporaryFile(prefix=f"{name}.", dir=directory or ".") as now:
            return os.fstat(now.fileno()).st_mtime - os.stat(self.path).st_mtime


def is_dead(holder: Owner, mine: Owner, silent_for: float) -> bool:
    """Whether a holder is no obstacle.

    Args:
        holder: who is named in the lock.
        mine: this process.
        silent_for: seconds since its last sign of life.

    Returns:
        True for this process itself, for a process of this host that is gone, for an earlier life of the same Slurm job, and
        for whoever has been silent for `SILENCE` seconds.
    """
    earlier_life = bool(holder.job) and holder.job == mine.job and holder.restart < mine.restart
    gone = holder.host == mine.host and (holder.pid == mine.pid or _started(holder.pid) != holder.started)
    return earlier_life or gone or silent_for > SILENCE


def is_running(pid: int) -> bool:
    """Whether this host has such a process."""
    return _started(pid) is not None


def _started(pid: int) -> int | None:
    """A process's start in clock ticks since the host's (proc(5), field 22); None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return None
