"""Writes checkpoint files so that they become visible only when intact, and detects corrupt ones.

A checkpoint is a Keras file (`.weights.h5` or `.keras`) that stock Keras loads, with two additions: a group `global_step` with
the training state that Keras does not store (`callbacks/state/state.py`), and a trailer of 64 bytes at the end of the file:

    8 bytes   magic and version     b"GSTEP" 0 0 2
    4 x 8     batch, step, epoch, samples (unsigned, big-endian)
    8         size of everything before the trailer
    16        XXH3-128 of everything before it

HDF5 ignores bytes after its data; in a `.keras` archive the trailer is the archive's comment. The counters in the trailer order
a directory of thousands of checkpoints without opening them as HDF5. Version 1 (`callbacks/disk/format_1.py`) can be read too.
Later versions keep the form of the trailer, so that this one recognizes their files.
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

from callbacks.disk import checksum, format_1
from callbacks.disk.folders import flush_folder
from callbacks.disk.header import unknown_format
from callbacks.disk.lock import SILENCE, Owner, is_running, pid_space
from callbacks.disk.regular_file import NotRegular, open_regular
from callbacks.disk.template import Template
from callbacks.errors import InputError

MAGIC = b"GSTEP\x00\x00\x02"
_HEAD = struct.Struct(">8s5Q")
TRAILER_SIZE = _HEAD.size + checksum.SIZE
_DIGEST_SIZES = {format_1.MAGIC: format_1.DIGEST_SIZE, MAGIC: checksum.SIZE}
_NAME_BYTES = 255  # limit of a file name on Linux
_in_flight: set[str] = set()  # temporary files that this process is writing
_TEMPORARY = re.compile(r"\.tmp-(?P<pid>\d+)@(?P<space>[^@]+)@(?P<name>.+)")


class Corrupt(Exception):
    """The file does not match its trailer, or has none. The message says why, without the file's name."""


@dataclass(frozen=True)
class Trailer:
    """The counters in the last bytes of a checkpoint."""

    batch: int
    step: int
    epoch: int
    samples: int


class Output:
    """Writes a new file from beginning to end, and compares the file with the data.

    A thread flushes the written part and reads it back while the rest is being written.

    Args:
        descriptor: the descriptor of the empty file.
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
        """Writes a whole buffer.

        Raises:
            OSError: if a write fails.
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
        """Returns the number of bytes written."""
        return self._position

    def flush(self) -> None:
        """Does nothing, since writes are not buffered; `zipfile` calls it."""

    def finish(self) -> None:
        """Waits until the file is on the disk, and compares it with the data.

        Raises:
            OSError: the error of the first flush that failed, since Linux reports an error only once; EIO if the bytes differ.
        """
        self.wait()
        os.fsync(self._descriptor)
        self._read_back(self._position)
        if self._read != self._position or self._checksum_of_file.digest() != self.checksum.digest():
            raise OSError(errno.EIO, "the file differs from the data that was written")

    def wait(self) -> None:
        """Waits for the flush in the thread.

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
        with contextlib.suppress(RuntimeError):  # Python is exiting and starts no more threads
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
    """Writes a checkpoint so that the file is either missing or intact, whenever the process or the machine dies.

    The data goes to a hidden file beside the target. That file is flushed to the disk, read back and then renamed to the target.
    A rename within a directory is atomic (POSIX), and a flush of the directory makes the new name permanent.

    Args:
        path: the file to create or to replace.
        trailer: the counters for the trailer.
        write: receives the hidden file and writes a Keras file.
        check: called before the rename; raises if this process may not commit any more. A process that takes the lock removes
            hidden files of the earlier owner (`sweep`), so a rename after an outdated check fails.

    Returns:
        The file's size in bytes.

    Raises:
        OSError: if the disk is full, the directory is gone, and so on. The hidden file is removed, and `path` is unchanged.
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
        check()  # a lost lock is the cause of the error if another process has removed the hidden file
        raise
    finally:
        _in_flight.discard(os.path.abspath(temporary))
    try:
        flush_folder(directory or ".")
    except OSError as error:
        lost = "the directory could not be flushed, so the file may be lost if the machine crashes"
        raise OSError(error.errno, f"{error.strerror}: {lost}") from error
    return size


def _rename(temporary: str, path: str) -> None:
    """Renames a file, and repeats a rename that a signal interrupted: it may or may not have happened."""
    while True:
        try:
            os.replace(temporary, path)
            return
        except InterruptedError:
            if not os.path.lexists(temporary):
                return


def _write_durably(path: str, trailer: Trailer, write: Callable[[Output], None]) -> int:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # what an earlier process with our pid left there, or a link or a FIFO that another user made
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
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
    with contextlib.suppress(InterruptedError):  # the file is on the disk and was read back already
        os.close(descriptor)  # some file systems report a failed write only here
    return output.tell()


def temporary_name(name: str) -> str:
    """Returns the hidden name under which this process writes `name`. It keeps the suffix, which Keras requires."""
    return f".tmp-{os.getpid()}@{pid_space()}@{name}"


def check_name_lengths(template: Template) -> None:
    """Checks that the names of a template, and the hidden names beside them, are not too long for the file system.

    Raises:
        InputError: if a name may be too long.
    """
    *directories, name = template.longest().split("/")
    spare = len("4194304") - len(str(os.getpid()))  # a later process may have a longer pid
    for part in (*directories, temporary_name(name) + "_" * spare):
        if len(os.fsencode(part)) > _NAME_BYTES:
            raise InputError(
                f"A file name may have at most {_NAME_BYTES} bytes, including a hidden prefix and large counters. Received: "
                f"{template.text!r}, whose names have up to {len(os.fsencode(part))} bytes. Give a shorter template."
            )


def sweep(template: Template, fenced: Owner | None = None) -> None:
    """Removes unfinished files of dead processes. Files that a living process is writing stay.

    A process of another host or container counts as dead if its file has not changed for `SILENCE` seconds.

    Args:
        template: the template of the files.
        fenced: a process that has lost its lock. Its files are removed even if it is alive, since it may not commit them.

    Raises:
        InputError: if a file of `fenced` cannot be removed.
    """
    for path in glob.iglob(os.path.join(os.path.dirname(template.pattern), ".tmp-*")):
        parent, hidden = os.path.split(path)
        found = _TEMPORARY.fullmatch(hidden)
        if not found or not template.matches(os.path.join(parent, found["name"])):
            continue
        pid, space = int(found["pid"]), found["space"]
        is_fenced = fenced is not None and (pid, space) == (fenced.pid, fenced.pid_space)
        try:
            if os.path.abspath(path) not in _in_flight and (is_fenced or _is_stale(path, pid, space)):
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:  # a directory, or the file of another user in a sticky directory: harmless if its process is dead
            if is_fenced:
                raise InputError(f"The unfinished file {path} of an earlier run cannot be removed: {error.strerror}.") from None


def _is_stale(path: str, pid: int, space: str) -> bool:
    if space == pid_space():
        return pid == os.getpid() or not is_running(pid)  # not in flight here, so an earlier process had our pid
    return time.time() - os.stat(path).st_mtime > SILENCE


def read_trailer(path: str) -> Trailer:
    """Returns the counters of a checkpoint without reading the rest of the file.

    Raises:
        Corrupt: if the file does not end with a trailer.
        InputError: if the version of its format is unknown.
        OSError: if it cannot be read.
    """
    with open_checkpoint(path) as file:
        return _read_trailer(file, path)[0]


def verify(path: str) -> Trailer:
    """Reads the whole file, verifies its checksum and returns its counters.

    Raises:
        Corrupt: if any byte differs from what was written.
        InputError: if the version of its format is unknown.
        OSError: if it cannot be read.
    """
    with open_checkpoint(path) as file:
        trailer, size, head, digest = _read_trailer(file, path)
        found = _digest(file.fileno(), size, head)
    if found != digest:
        raise Corrupt("its checksum does not match its content")
    return trailer


def _digest(descriptor: int, size: int, head: bytes) -> bytes:
    if not head.startswith(MAGIC):
        try:
            return format_1.digest(descriptor, size, head)
        except EOFError:
            raise Corrupt("it ends early") from None
    found, end = checksum.Checksum(), size + len(head)
    if checksum.update_from_file(found, descriptor, 0, end) != end:
        raise Corrupt("it ends early")
    return found.digest()


def open_checkpoint(path: str) -> BinaryIO:
    """Opens a file for reading, and raises `Corrupt` if it is not a regular file."""
    try:
        return open_regular(path)
    except NotRegular as error:
        raise Corrupt(str(error)) from None


def _read_trailer(file: BinaryIO, path: str) -> tuple[Trailer, int, bytes, bytes]:
    total = os.fstat(file.fileno()).st_size
    if total < TRAILER_SIZE:
        raise Corrupt(f"it has {total} bytes, too few for a checkpoint")
    for magic, digest_size in _DIGEST_SIZES.items():
        trailer_size = _HEAD.size + digest_size
        raw = os.pread(file.fileno(), trailer_size, max(total - trailer_size, 0))
        if len(raw) == trailer_size and raw.startswith(magic):
            break
    else:
        _refuse_later_version(file, path, total)
        raise Corrupt("it does not end with a checkpoint's trailer: truncated, or not written by GlobalStepCheckpoint")
    head, digest = raw[: _HEAD.size], raw[_HEAD.size :]
    _, batch, step, epoch, samples, size = _HEAD.unpack(head)
    if size != total - trailer_size:
        raise Corrupt(f"it has {total - trailer_size} bytes before its trailer, but the trailer says {size}")
    return Trailer(batch, step, epoch, samples), size, head, digest


def _refuse_later_version(file: BinaryIO, path: str, total: int) -> None:
    """Raises if a file has a trailer of a later version, and its checksum matches. Else a byte of the version was changed."""
    magic, end, found = os.pread(file.fileno(), len(MAGIC), total - TRAILER_SIZE), total - checksum.SIZE, checksum.Checksum()
    if magic[:5] != MAGIC[:5]:
        return
    checksum.update_from_file(found, file.fileno(), 0, end)
    if found.digest() == os.pread(file.fileno(), checksum.SIZE, end):
        raise unknown_format(path, int.from_bytes(magic[5:]), [known[-1] for known in _DIGEST_SIZES])
