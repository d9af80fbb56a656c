"""TensorBoard's event files of one run: points on one axis, and restarts that take back what they do not go on from."""

import itertools
import os
import socket
import struct
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import tensorflow as tf
from google.protobuf.message import DecodeError

from callbacks.errors import EventWriteError, InputError
from callbacks.file_identity import identity
from callbacks.folders import make_folder
from callbacks.regular_file import NotRegular, open_regular

LIFE = uuid.uuid4().hex  # of this process; each event file tells it, so that restarts can be counted
_PATTERN = "events.out.tfevents.*"
_FRAME = 16  # bytes of a record beside its data
_Event = tf.compat.v1.Event


class EventFile:
    """What this process adds to a directory that TensorBoard reads as one run.

    TensorBoard reads a directory's files in the order of their names, each to its end, and gives up the earlier ones: so
    there is one writer for each directory, and its file has to sort after the others. If the directory is deleted, moved or
    unmounted while training runs, a warning says so, and nothing is written from then on.

    Args:
        directory: where; it is made.
        describe: what TensorBoard shall say about a tag, in Markdown.

    Raises:
        InputError: if nothing can be written there.
        EventWriteError: in each method, if nothing can be written there any more.
    """

    def __init__(self, directory: str, describe: Callable[[str], str]):
        self._directory, self._describe = directory, describe
        self._described: set[str] = set()
        self._is_lost = False
        try:
            make_folder(directory)
            name = f"events.out.tfevents.{_next_second(directory):010d}.{socket.gethostname()}.{os.getpid()}.{LIFE}"
            self._path = os.path.join(directory, name)
            self._records = tf.io.TFRecordWriter(self._path)
            self._write(_Event(wall_time=time.time(), file_version="brain.Event:2"))
            self._identity = identity(self._path)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(str(error) if isinstance(error, EventWriteError) else self._refusal(error)) from None

    @property
    def is_lost(self) -> bool:
        """Whether the file is no longer where it was made. That is said once; training does not need the file to continue."""
        try:
            is_in_place = self._is_lost or identity(self._path) == self._identity
        except OSError as error:
            raise EventWriteError(self._refusal(error)) from None
        if not is_in_place:
            self._is_lost = True
            warnings.warn(
                f"The curves in {self._directory} are lost from here on: it was deleted, moved or unmounted while training ran. "
                "Training continues without them; the next start makes the directory again.",
                stacklevel=2,
            )
        return self._is_lost

    def begin(self, step: int, wall_time: float) -> None:
        """Says that training goes on: TensorBoard drops what it has read of this step and later ones.

        Args:
            step: the first one that this process may write.
            wall_time: now, in seconds since 1970.
        """
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START, msg=LIFE)
        self._add(_Event(wall_time=wall_time, step=step, session_log=start))

    def scalars(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Adds a point to each tag. On return it has left the process: a kill does not lose it.

        Args:
            step: the place on the axis.
            wall_time: now, in seconds since 1970.
            values: tag -> value.
        """
        event = _Event(wall_time=wall_time, step=step)
        for tag, number in values.items():
            # As a plain number, not as the tensor of `tf.summary.scalar`: those EventAccumulator does not drop at a restart.
            value = event.summary.value.add(tag=tag, simple_value=number)
            if tag not in self._described:  # TensorBoard takes a tag's description from its first point
                self._described.add(tag)
                value.metadata.plugin_data.plugin_name = "scalars"
                value.metadata.data_class = 1  # DATA_CLASS_SCALAR
                value.metadata.summary_description = self._describe(tag)
        self._add(event)

    def summary(self, serialized: bytes, wall_time: float) -> None:
        """Adds a summary, as TensorBoard's own code makes them, that belongs to no step."""
        self._add(_Event(wall_time=wall_time, summary=tf.compat.v1.Summary.FromString(serialized)))

    def text(self, step: int, wall_time: float, tag: str, markdown: str) -> None:
        """Adds a text. On return it has left the process: a kill does not lose it.

        No restart takes texts back: TensorBoard drops numbers and pictures only. Ask `steps` before writing one again.

        Args:
            step: the place on the axis.
            wall_time: now, in seconds since 1970.
            tag: TensorBoard's name for texts of one kind.
            markdown: what TensorBoard shows.
        """
        event = _Event(wall_time=wall_time, step=step)
        value = event.summary.value.add(tag=tag, tensor=tf.make_tensor_proto(markdown.encode()))
        value.metadata.plugin_data.plugin_name = "text"
        value.metadata.data_class = 2  # DATA_CLASS_TENSOR
        value.metadata.summary_description = self._describe(tag)
        self._add(event)

    def adopt(self, directory: str) -> None:
        """Adds what `tf.summary` has written to another directory. On return it has left the process."""
        for path in Path(directory).glob(_PATTERN):
            self.add(event for event in _events(path) if event.HasField("summary"))

    def add(self, events: Iterable[tf.compat.v1.Event]) -> None:
        """Adds events with the steps that they have. On return they have left the process."""
        for event in events:
            self._add(event)

    def _add(self, event):
        if not self.is_lost:
            self._write(event)

    def _write(self, event):
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except tf.errors.OpError as error:
            raise EventWriteError(self._refusal(error)) from None

    def _refusal(self, error):
        return f"TensorBoard's events cannot be written to {self._directory}: {error}"


def lives(directory: str) -> dict[str, float]:
    """The processes that have written to a directory, each with the time at which it began, in seconds since 1970."""
    began: dict[str, float] = {}
    for path in Path(directory).glob(_PATTERN):
        for event in _head(path):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                life = event.session_log.msg
                began[life] = min(event.wall_time, began.get(life, event.wall_time))
    return began


def replace_summary(directory: str, describe: Callable[[str], str], serialized: bytes, wall_time: float) -> None:
    """Writes a summary of no step, and removes the files of earlier processes that hold nothing but the same tags.

    Of several values that a tag has in a directory, TensorBoard shows the first one.

    Args:
        directory: where.
        describe: what TensorBoard shall say about a tag, in Markdown.
        serialized: the summary, as TensorBoard's own code makes it.
        wall_time: now, in seconds since 1970.

    Raises:
        InputError: if nothing can be written there, or an earlier file cannot be removed.
    """
    tags = {value.tag for value in tf.compat.v1.Summary.FromString(serialized).value}
    earlier = [path for path in Path(directory).glob(_PATTERN) if _tags(path) == tags]
    EventFile(directory, describe).summary(serialized, wall_time)
    try:
        for path in earlier:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"TensorBoard's events cannot be removed: {path}: {error.strerror}") from None


def is_empty(directory: str) -> bool:
    """Whether no process has opened an event file in a directory."""
    return next(Path(directory).glob(_PATTERN), None) is None


def steps(directory: str) -> set[int]:
    """The steps at which any process has written something to a directory."""
    paths = Path(directory).glob(_PATTERN)
    return {event.step for path in paths for event in _events(path) if event.HasField("summary")}


def _tags(path: Path) -> set[str]:
    return {value.tag for event in _events(path) for value in event.summary.value}


def _head(path: Path) -> Iterator[tf.compat.v1.Event]:
    """The first two events of a file: its version, and the START; fewer where a kill has cut it short."""
    return itertools.islice(_events(path), 2)


def _events(path: Path) -> Iterator[tf.compat.v1.Event]:
    """All events of a file, up to where a kill has cut it short or a power cut has left something else.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            yield from read_events(file)
    except NotRegular:
        return
    except OSError as error:
        raise InputError(f"TensorBoard's events cannot be read: {path}: {error.strerror}") from None


def read_events(file: BinaryIO) -> Iterator[tf.compat.v1.Event]:
    """Yields the events from the file's position on; it stays behind the last one that is complete."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left >= _FRAME:
        begin = file.tell()
        (size,) = struct.unpack("<Q", file.read(12)[:8])  # uint64, and its checksum
        left -= _FRAME + size
        if left < 0:
            file.seek(begin)
            return
        try:
            yield _Event.FromString(file.read(size + 4)[:-4])
        except DecodeError:
            return


def _next_second(directory: str) -> int:
    """The time for a new file's name: now, or the second after the newest file's where that is ahead of the clock."""
    seconds = [path.name.split(".")[3] for path in Path(directory).glob(_PATTERN)]
    newest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    return max(int(time.time()), newest + 1)
