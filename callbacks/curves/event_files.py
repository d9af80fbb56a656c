"""TensorBoard's event files: points over one axis; on restart, events after the resumed checkpoint are discarded."""

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

from callbacks.disk.file_identity import identity
from callbacks.disk.folders import make_folder
from callbacks.disk.regular_file import NotRegular, open_regular
from callbacks.errors import EventWriteError, InputError

ATTEMPT = uuid.uuid4().hex  # names this process in each event file, so that restarts can be counted
_PATTERN = "events.out.tfevents.*"
_FRAME = 16  # bytes of a record other than its data
_Event = tf.compat.v1.Event


class EventFile:
    """Adds a file to a directory that TensorBoard reads as one run.

    TensorBoard reads a directory's files in the order of their names, each to its end, and never returns to earlier ones. So
    each directory has one writer, and its file must sort last. If the directory is deleted, moved or unmounted during training,
    a warning says so and nothing more is written.

    Args:
        directory: the directory, which is created.
        describe: returns the description of a tag, in Markdown.

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
            name = f"events.out.tfevents.{_next_second(directory):010d}.{socket.gethostname()}.{os.getpid()}.{ATTEMPT}"
            self._path = os.path.join(directory, name)
            self._records = tf.io.TFRecordWriter(self._path)
            self._write(_Event(wall_time=time.time(), file_version="brain.Event:2"))
            self._identity = identity(self._path)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(str(error) if isinstance(error, EventWriteError) else self._refusal(error)) from None

    @property
    def is_lost(self) -> bool:
        """Whether the file is no longer where it was created. A warning says so once, and training continues."""
        try:
            is_in_place = self._is_lost or identity(self._path) == self._identity
        except OSError as error:
            raise EventWriteError(self._refusal(error)) from None
        if not is_in_place:
            self._is_lost = True
            warnings.warn(
                f"The curves in {self._directory} are lost from here on: the directory was deleted, moved or unmounted during "
                "training. Training continues without curves; the next start creates the directory again.",
                stacklevel=2,
            )
        return self._is_lost

    def begin(self, step: int, wall_time: float) -> None:
        """Starts an attempt: TensorBoard discards the events of this step and later ones.

        Args:
            step: the first step that this process may write.
            wall_time: when the process was started, in seconds since 1970.
        """
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START, msg=ATTEMPT)
        self._add(_Event(wall_time=wall_time, step=step, session_log=start))

    def scalars(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Adds a point to each tag. After the return a kill does not lose it.

        Args:
            step: the step of the point.
            wall_time: now, in seconds since 1970.
            values: tag -> value.
        """
        event = _Event(wall_time=wall_time, step=step)
        for tag, number in values.items():
            # A plain number, since EventAccumulator does not discard the tensors of `tf.summary.scalar` at a restart.
            value = event.summary.value.add(tag=tag, simple_value=number)
            if tag not in self._described:  # TensorBoard takes a tag's description from its first point
                self._described.add(tag)
                value.metadata.plugin_data.plugin_name = "scalars"
                value.metadata.data_class = 1  # DATA_CLASS_SCALAR
                value.metadata.summary_description = self._describe(tag)
        self._add(event)

    def summary(self, serialized: bytes, wall_time: float) -> None:
        """Adds a serialized summary without a step."""
        self._add(_Event(wall_time=wall_time, summary=tf.compat.v1.Summary.FromString(serialized)))

    def text(self, step: int, wall_time: float, tag: str, markdown: str) -> None:
        """Adds a text. After the return a kill does not lose it.

        A restart does not discard texts: TensorBoard discards numbers and images only. Look in `steps` before you write a text
        again.

        Args:
            step: the step of the text.
            wall_time: now, in seconds since 1970.
            tag: TensorBoard's name for texts of one kind.
            markdown: the text.
        """
        event = _Event(wall_time=wall_time, step=step)
        value = event.summary.value.add(tag=tag, tensor=tf.make_tensor_proto(markdown.encode()))
        value.metadata.plugin_data.plugin_name = "text"
        value.metadata.data_class = 2  # DATA_CLASS_TENSOR
        value.metadata.summary_description = self._describe(tag)
        self._add(event)

    def adopt(self, directory: str) -> None:
        """Adds the events that `tf.summary` wrote to another directory. After the return a kill does not lose them."""
        for path in Path(directory).glob(_PATTERN):
            self.add(event for event in _events(path) if event.HasField("summary"))

    def add(self, events: Iterable[tf.compat.v1.Event]) -> None:
        """Adds events with their own steps. After the return a kill does not lose them."""
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


def attempts(directory: str) -> dict[str, float]:
    """Returns the attempts that wrote to a directory: name -> when its process was started, in seconds since 1970."""
    began: dict[str, float] = {}
    for path in Path(directory).glob(_PATTERN):
        for event in _head(path):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                attempt = event.session_log.msg
                began[attempt] = min(event.wall_time, began.get(attempt, event.wall_time))
    return began


def replace_summary(directory: str, describe: Callable[[str], str], serialized: bytes, wall_time: float) -> None:
    """Writes a summary without a step, and removes files of earlier attempts with only the same tags.

    If a tag has several values in a directory, TensorBoard shows the first one.

    Args:
        directory: the directory.
        describe: returns the description of a tag, in Markdown.
        serialized: the serialized summary.
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
        raise InputError(
            f"Cannot remove TensorBoard's events {path}: {error.strerror}. Give a directory that can be written to."
        ) from None


def is_empty(directory: str) -> bool:
    """Returns whether a directory has no event file."""
    return next(Path(directory).glob(_PATTERN), None) is None


def steps(directory: str) -> set[int]:
    """Returns the steps of the summaries that any process wrote to a directory."""
    paths = Path(directory).glob(_PATTERN)
    return {event.step for path in paths for event in _events(path) if event.HasField("summary")}


def _tags(path: Path) -> set[str]:
    return {value.tag for event in _events(path) for value in event.summary.value}


def _head(path: Path) -> Iterator[tf.compat.v1.Event]:
    """Yields the first two events of a file, its version and the START; fewer if a kill has cut the file short."""
    return itertools.islice(_events(path), 2)


def _events(path: Path) -> Iterator[tf.compat.v1.Event]:
    """Yields the events of a file up to the first one that a kill or a power cut has left incomplete.

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
    """Yields the events from the file's position on, and leaves the position after the last complete event."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left >= _FRAME:
        begin = file.tell()
        (size,) = struct.unpack("<Q", file.read(12)[:8])  # uint64 and its checksum
        left -= _FRAME + size
        if left < 0:
            file.seek(begin)
            return
        try:
            yield _Event.FromString(file.read(size + 4)[:-4])
        except DecodeError:
            return


def _next_second(directory: str) -> int:
    """Returns the time in a new file's name: now, or the second after the newest file's if that is later."""
    seconds = [path.name.split(".")[3] for path in Path(directory).glob(_PATTERN)]
    newest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    return max(int(time.time()), newest + 1)
