"""The file of a checkpoint: how it becomes visible intact, and how damage is found.

A checkpoint is a file of Keras (`.weights.h5` or `.keras`) that stock Keras loads, with two things added: a group
`global_step` with the training state that Keras does not store (`callbacks/state.py`), and a trailer of 64 bytes at the
very end of the file:

    8 bytes   magic and version     b"GSTEP" 0 0 2
    4 x 8     batch, step, epoch, samples (unsigned, big-endian)
    8         size of everything before the trailer
    16        XXH3-128 of everything before it

HDF5 ignores what follows its data; in a `.keras` archive the trailer is the archive's comment. The counters in the trailer
let a directory with thousands of checkpoints be ordered without opening one. Version 1 (`callbacks/format_1.py`) is read too.
"""

import contextlib
import errno
import glob
import os
import re
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from callbacks import checksum, format_1
from callbacks.errors import InputError
from callbacks.folders import flush_folder
from callbacks.lock import SILENCE, Owner, is_running, pid_space
from callbacks.regular_file import NotRegular, open_regular
from callbacks.template import Template

MAGIC = b"GSTEP\x00\x00\x02"
_HEAD = struct.Struct(">8s5Q")
TRAILER_SIZE = _HEAD.size + checksum.SIZE
_DIGEST_SIZES = {MAGIC: checksum.SIZE, format_1.MAGIC: format_1.DIGEST_SIZE}
_NAME_BYTES = 255  # of a file on Linux
_in_flight: set[str] = set()  # temporaries that this process is writing
_TEMPORARY = re.compile(r"\.tmp-(?P<pid>\d+)@(?P<space>[^@]+)@(?P<name>.+)")


class Damaged(Exception):
    """The file is not what its trailer says, or has none. The message says why, without the file's name."""


@dataclass(frozen=True)
class Trailer:
    """The counters of a checkpoint, as its last bytes tell them."""

    batch: int
    step: int
    epoch: int
    samples: int


class Output:
    """A new file that is written from its beginning to its end, and compared with what was to be written.

    A thread flushes what is there and reads it back, while the rest is still being written.

    Args:
        descriptor: of the empty file.
    """

    _FLUSHED_AT_ONCE = 1 << 27  # bytes

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._position = self._read = 0
        self._flusher: threading.Thread | None = None
        self._error: OSError | None = None
        self.checksum = checksum.Checksum()
        self._checksum_of_file = checksum.Checksum()

    def write(self, data: Any) -> int:
        """Writes all of a buffer.

        Raises:
            OSError: of the first write that fails.
        """
        left = memoryview(data).cast("B")
        self.checksum.update(left)
        size = len(left)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._position += size
        if self._position - self._read >= self._FLUSHED_AT_ONCE and not self._is_flushing():
            self._begin_flush()
        return size

    def tell(self) -> int:
        """Returns how many bytes were written."""
        return self._position

    def flush(self) -> None:
        """Does nothing, since nothing waits to be written; `zipfile` asks for it."""

    def finish(self) -> None:
        """Waits until all of it is on the disk, and compares what is there with what was to be written.

        Raises:
            OSError: of the first flush that fails, since the system tells of an error only once; EIO if the bytes differ.
        """
        self.wait()
        os.fsync(self._descriptor)
        self._read_back(self._position)
        if self._read != self._position or self._checksum_of_file.digest() != self.checksum.digest():
            raise OSError(errno.EIO, "what was read back is not what was written")

    def wait(self) -> None:
        """Waits for the flush that was begun.

        Raises:
            OSError: if a flush has failed.
        """
        if self._flusher is not None:
            self._flusher.join()
            self._flusher = None
        if self._error is not None:
            raise self._error

    def _is_flushing(self):
        return self._flusher is not None and self._flusher.is_alive()

    def _begin_flush(self):
        self.wait()
        flusher = threading.Thread(target=self._flush, args=[self._position], name="checkpoint-flush", daemon=True)
        with contextlib.suppress(RuntimeError):  # Python is about to exit and starts no thread any more
            flusher.start()
            self._flusher = flusher

    def _flush(self, end):
        try:
            os.fdatasync(self._descriptor)
            self._read_back(end)
        except OSError as error:
            self._error = error

    def _read_back(self, end):
        self._read += checksum.update_from_file(self._checksum_of_file, self._descriptor, self._read, end)


def commit(path: str, trailer: Trailer, write: Callable[[Output], None], check: Callable[[], None] = lambda: None) -> int:
    """Writes a checkpoint so that it is either not there or intact, whenever the process or the machine dies.

    Everything goes to a hidden file beside the target, which is flushed to the disk, read back, and then renamed over it: a
    rename within a directory is atomic (POSIX), and the flush of the directory makes the new name last.

    Args:
        path: the file to make or to replace.
        trailer: the counters for the trailer.
        write: called with the hidden file, writes a file of Keras.
        check: called before the rename; raises if this process may not commit any more. Whoever takes over from a process then
            removes its hidden file (`sweep`), so that no rename can come after a check that was true once.

    Returns:
        The file's size in bytes.

    Raises:
        OSError: if the disk is full, the directory gone, and so on. The hidden file is removed, `path` is as it was.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, temporary_name(name))
    _in_flight.add(os.path.abspath(temporary))
    try:
        size = _write_durably(temporary, trailer, write)
        check()
        _rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        check()  # whoever has taken over has removed the hidden file: that is the cause then, and not what came of it
        raise
    finally:
        _in_flight.discard(os.path.abspath(temporary))
    try:
        flush_folder(directory or ".")
    except OSError as error:
        lasts = "its name could not be flushed, so it may not outlast a crash of the machine"
        raise OSError(error.errno, f"{error.strerror}: {lasts}") from error
    return size


def _rename(temporary: str, path: str) -> None:
    """Renames, and again where a signal interrupts it: after some interruptions the rename is done, after some it is not."""
    while True:
        try:
            os.replace(temporary, path)
            return
        except InterruptedError:
            if not os.path.lexists(temporary):
                return


def _write_durably(path: str, trailer: Trailer, write: Callable[[Output], None]) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    output = Output(descriptor)
    try:
        write(output)
        size = output.tell()
        output.write(_HEAD.pack(MAGIC, trailer.batch, trailer.step, trailer.epoch, trailer.samples, size))
        output.write(output.checksum.digest())
        output.finish()
    except BaseException:
        with contextlib.suppress(OSError):
            output.wait()
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    with contextlib.suppress(InterruptedError):  # all of it is on the disk and was read back, whoever holds the descriptor now
        os.close(descriptor)  # some file systems tell of a failed write only here
    return output.tell()


def temporary_name(name: str) -> str:
    """The hidden name under which this process writes `name`; it keeps the suffix, which Keras insists on."""
    return f".tmp-{os.getpid()}@{pid_space()}@{name}"


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

    A process of another host or container counts as dead when its file has not grown for as long as a silent lock takes to die.

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
            pid, space = int(found["pid"]), found["space"]
            is_fenced = fenced is not None and (pid, space) == (fenced.pid, fenced.pid_space)
            if os.path.abspath(path) not in _in_flight and (is_fenced or _is_stale(path, pid, space)):
                os.unlink(path)


def _is_stale(path: str, pid: int, space: str) -> bool:
    if space == pid_space():
        return pid == os.getpid() or not is_running(pid)  # ours, and not in flight: of an earlier process with our pid
    return time.time() - os.stat(path).st_mtime > SILENCE


def read_trailer(path: str) -> Trailer:
    """The counters of a checkpoint, without a look at the rest of the file.

    Raises:
        Damaged: if the file does not end as a checkpoint of this format does.
        OSError: if it cannot be read.
    """
    with _open(path) as file:
        return _read_trailer(file)[0]


def verify(path: str) -> Trailer:
    """Reads the whole file and returns its counters, or finds that a byte of it has changed.

    Raises:
        Damaged: if any byte differs from what was written.
        OSError: if it cannot be read.
    """
    with _open(path) as file:
        trailer, size, head, digest = _read_trailer(file)
        found = _digest(file.fileno(), size, head)
    if found != digest:
        raise Damaged("its checksum does not match its content")
    return trailer


def _digest(descriptor: int, size: int, head: bytes) -> bytes:
    if not head.startswith(MAGIC):
        try:
            return format_1.digest(descriptor, size, head)
        except EOFError:
            raise Damaged("it ends early") from None
    found, end = checksum.Checksum(), size + len(head)
    if checksum.update_from_file(found, descriptor, 0, end) != end:
        raise Damaged("it ends early")
    return found.digest()


def _open(path: str) -> BinaryIO:
    try:
        return open_regular(path)
    except NotRegular as error:
        raise Damaged(str(error)) from None


def _read_trailer(file: BinaryIO) -> tuple[Trailer, int, bytes, bytes]:
    total = os.fstat(file.fileno()).st_size
    if total < TRAILER_SIZE:
        raise Damaged(f"it has {total} bytes, too few for a checkpoint")
    for magic, digest_size in _DIGEST_SIZES.items():
        trailer_size = _HEAD.size + digest_size
        raw = os.pread(file.fileno(), trailer_size, max(total - trailer_size, 0))
        if len(raw) == trailer_size and raw.startswith(magic):
            break
    else:
        raise Damaged("it does not end with a checkpoint's trailer: truncated, or not written by GlobalStepCheckpoint")
    head, digest = raw[: _HEAD.size], raw[_HEAD.size :]
    _, batch, step, epoch, samples, size = _HEAD.unpack(head)
    if size != total - trailer_size:
        raise Damaged(f"it has {total - trailer_size} bytes before its trailer, which says {size}")
    return Trailer(batch, step, epoch, samples), size, head, digest
