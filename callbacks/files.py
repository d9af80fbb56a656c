"""The file of a checkpoint: how it becomes visible whole, and how damage is found.

A checkpoint is a file of Keras (`.weights.h5` or `.keras`) that stock Keras loads, with two things added: a group
`global_step` with the training state that Keras does not store (`callbacks/state.py`), and a trailer of 80 bytes at the
very end of the file:

    8 bytes   magic and version     b"GSTEP" 0 0 1
    4 x 8     batch, step, epoch, samples (unsigned, big-endian)
    8         size of everything before the trailer
    32        SHA-256 of the SHA-256 of each 4 MiB before the trailer, and of the three fields above

HDF5 ignores what follows its data; in a `.keras` archive the trailer is the archive's comment. The counters in the trailer
let a directory with thousands of checkpoints be ordered without opening one.
"""

import contextlib
import functools
import glob
import hashlib
import os
import re
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

from callbacks.errors import InputError
from callbacks.lock import SILENCE, Owner, is_running
from callbacks.template import Template

_MAGIC = b"GSTEP\x00\x00\x01"
_HEAD = struct.Struct(">8s5Q")
_TRAILER_SIZE = _HEAD.size + hashlib.sha256().digest_size
_CHUNK = 1 << 22
_PIECE = 1 << 19  # of a chunk, read at once: it stays in a core's cache until its checksum is taken
_NAME_BYTES = 255  # of a file on Linux
_in_flight: dict[str, str] = {}  # temporaries that this process is writing, and what each will be
_TEMPORARY = re.compile(r"\.tmp-(?P<pid>\d+)@(?P<host>[^@]+)@(?P<name>.+)")


class Damaged(Exception):
    """The file is not what its trailer says, or has none. The message says why, without the file's name."""


@dataclass(frozen=True)
class Trailer:
    """The counters of a checkpoint, as its last bytes tell them."""

    batch: int
    step: int
    epoch: int
    samples: int


def commit(path: str, trailer: Trailer, write: Callable[[str], None], check: Callable[[], None] = lambda: None) -> int:
    """Writes a checkpoint so that it is either not there or whole, whenever the process or the machine dies.

    Everything goes to a hidden file beside the target, which is flushed to the disk and then renamed over it: a rename
    within a directory is atomic (POSIX), and the flush of the directory makes the new name last.

    Args:
        path: the file to make or to replace.
        trailer: the counters to seal it with.
        write: called with the hidden file's name, writes a file of Keras there.
        check: called before the rename; raises if this process may not commit any more. Whoever takes over from a process then
            removes its hidden file (`sweep`), so that no rename can come after a check that was true once.

    Returns:
        The file's size in bytes.

    Raises:
        OSError: if the disk is full, the directory gone, and so on. The hidden file is removed, `path` is as it was.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, temporary_name(name))
    _in_flight[os.path.abspath(temporary)] = path
    try:
        write(temporary)
        size = seal(temporary, trailer)
        check()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if os.path.isdir(directory or "."):
            check()  # whoever has taken over has removed the hidden file: that is the cause then, and not what came of it
        raise
    finally:
        del _in_flight[os.path.abspath(temporary)]
    _fsync_directory(directory or ".")
    return size


def temporary_name(name: str) -> str:
    """The hidden name under which this process writes `name`; it keeps the suffix, which Keras insists on."""
    return f".tmp-{os.getpid()}@{socket.gethostname()}@{name}"


def check_name_lengths(template: Template) -> None:
    """Checks that the file system takes every name of a template, and the hidden name beside it.

    Raises:
        InputError: if a name may be too long.
    """
    *directories, name = template.longest().split("/")
    spare = len("4194304") - len(str(os.getpid()))  # a later process may have a pid of more digits
    for part in (*directories, temporary_name(name) + "_" * spare):
        if len(os.fsencode(part)) > _NAME_BYTES:
            raise InputError(
                f"A name has at most {_NAME_BYTES} bytes, hidden prefix and large counters included. Give a template with "
                f"shorter names. Received: {template.text!r}, with names of up to {len(os.fsencode(part))} bytes."
            )


def sweep(template: Template, fenced: Owner | None = None) -> None:
    """Removes what dead processes have left of writes under this template; what a living one writes stays.

    A process of another host counts as dead when its file has not grown for as long as a silent lock takes to die.

    Args:
        template: whose files.
        fenced: a process whose lock was taken: it may live, and writes for nothing.
    """
    for path in glob.iglob(os.path.join(os.path.dirname(template.pattern), ".tmp-*")):
        parent, hidden = os.path.split(path)
        found = _TEMPORARY.fullmatch(hidden)
        if not found or not template.matches(os.path.join(parent, found["name"])):
            continue
        with contextlib.suppress(FileNotFoundError):
            pid, host = int(found["pid"]), found["host"]
            is_fenced = fenced is not None and (pid, host) == (fenced.pid, fenced.host)
            if os.path.abspath(path) not in _in_flight and (is_fenced or _is_stale(path, pid, host)):
                os.unlink(path)


def finish_own(template: Template) -> None:
    """Waits for what this process itself still writes under this template: a fit that failed has left it in flight."""
    while any(template.matches(path) for path in list(_in_flight.values())):
        time.sleep(0.01)


def _is_stale(path: str, pid: int, host: str) -> bool:
    if host == socket.gethostname():
        return pid == os.getpid() or not is_running(pid)  # ours, and not in flight: of an earlier process with our pid
    return time.time() - os.stat(path).st_mtime > SILENCE


def seal(path: str, trailer: Trailer) -> int:
    """Appends the trailer to a file that Keras wrote, flushes it to the disk, and returns its size in bytes."""
    if path.endswith(".keras"):
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = bytes(_TRAILER_SIZE)  # the archive's last record has to know the size of what follows it
        size = os.path.getsize(path) - _TRAILER_SIZE
    else:
        size = os.path.getsize(path)
    head = _HEAD.pack(_MAGIC, trailer.batch, trailer.step, trailer.epoch, trailer.samples, size)
    with open(path, "r+b") as file:
        descriptor = file.fileno()
        flush = functools.partial(os.fsync, descriptor)  # the disk and the checksum take their time side by side
        _, *leaves = _side_by_side([flush, *_leaf_digests(descriptor, size)])
        file.seek(size)
        file.write(head + _root_digest(leaves, head))
        file.flush()
        os.fsync(descriptor)
    return size + _TRAILER_SIZE


def read_trailer(path: str) -> Trailer:
    """The counters of a checkpoint, without a look at the rest of the file.

    Raises:
        Damaged: if the file does not end as a checkpoint of this format does.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return _read_trailer(file)[0]


def verify(path: str) -> Trailer:
    """Reads the whole file and returns its counters, or finds that a byte of it has changed.

    Raises:
        Damaged: if any byte differs from what was written.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        trailer, size, head, digest = _read_trailer(file)
        if _root_digest(_side_by_side(_leaf_digests(file.fileno(), size)), head) != digest:
            raise Damaged("its checksum does not match its content")
    return trailer


def _read_trailer(file: BinaryIO) -> tuple[Trailer, int, bytes, bytes]:
    total = os.fstat(file.fileno()).st_size
    if total < _TRAILER_SIZE:
        raise Damaged(f"it has {total} bytes, too few for a checkpoint")
    file.seek(total - _TRAILER_SIZE)
    raw = file.read(_TRAILER_SIZE)
    head, digest = raw[: _HEAD.size], raw[_HEAD.size :]
    magic, batch, step, epoch, samples, size = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise Damaged("it does not end with a checkpoint's trailer: truncated, or not written by GlobalStepCheckpoint")
    if size != total - _TRAILER_SIZE:
        raise Damaged(f"it has {total - _TRAILER_SIZE} bytes before its trailer, which speaks of {size}")
    return Trailer(batch, step, epoch, samples), size, head, digest


def _leaf_digests(descriptor: int, size: int) -> list[Callable[[], bytes]]:
    """What computes the checksum of each chunk: a checksum of the whole in one go would keep one core busy, and the disk idle."""

    def digest(begin):
        found, end = hashlib.sha256(), min(begin + _CHUNK, size)
        while begin < end:
            piece = os.pread(descriptor, min(_PIECE, end - begin), begin)
            if not piece:
                raise Damaged("it ends early")
            found.update(piece)
            begin += len(piece)
        return found.digest()

    return [functools.partial(digest, offset) for offset in range(0, size, _CHUNK)]


def _root_digest(leaves: Iterable[bytes], head: bytes) -> bytes:
    return hashlib.sha256(b"".join(leaves) + head).digest()


def _side_by_side(acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """Calls each, in threads, and returns their results in order."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4) + 1) as threads:
        try:
            running = [threads.submit(act) for act in acts]
        except RuntimeError:  # Python is about to exit and starts no thread any more
            return [act() for act in acts]
        return [each.result() for each in running]


def _fsync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
