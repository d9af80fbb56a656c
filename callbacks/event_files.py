"""TensorBoard's event files of one run: points on one axis, and restarts that take back what they do not go on from."""

import itertools
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tensorflow as tf

from callbacks.errors import InputError

LIFE = uuid.uuid4().hex  # of this process; each event file tells it, so that restarts can be counted
_PATTERN = "events.out.tfevents.*"
_LONGEST_WAIT = 10  # seconds for the clock to pass the newest file's name
_Event = tf.compat.v1.Event


class EventFile:
    """What this process adds to a directory that TensorBoard reads as one run.

    TensorBoard reads a directory's files in the order of their names, each to its end, and gives up the earlier ones: so
    there is one writer for each directory, and its file has to sort after the others.

    Args:
        directory: where; it is made.
        describe: what TensorBoard shall say about a tag, in Markdown.

    Raises:
        InputError: here and in each method, if nothing can be written there.
    """

    def __init__(self, directory: str, describe: Callable[[str], str]):
        self._directory, self._describe = directory, describe
        self._described: set[str] = set()
        try:
            os.makedirs(directory, exist_ok=True)
            _wait_for_a_later_name(directory)
            now = time.time()
            name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{LIFE}"
            self._records = tf.io.TFRecordWriter(os.path.join(directory, name))
        except (OSError, tf.errors.OpError) as error:
            raise self._refused(error) from None
        self._write(_Event(wall_time=now, file_version="brain.Event:2"))

    def begin(self, step: int, wall_time: float) -> None:
        """Says that training goes on: TensorBoard drops what it has read of this step and later ones.

        Args:
            step: the first one that this process may write.
            wall_time: now, in seconds since 1970.
        """
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START, msg=LIFE)
        self._write(_Event(wall_time=wall_time, step=step, session_log=start))

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
        self._write(event)

    def summary(self, serialized: bytes, wall_time: float) -> None:
        """Adds a summary, as TensorBoard's own code makes them, that belongs to no step."""
        self._write(_Event(wall_time=wall_time, summary=tf.compat.v1.Summary.FromString(serialized)))

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
        self._write(event)

    def adopt(self, directory: str) -> None:
        """Adds what `tf.summary` has written to another directory. On return it has left the process."""
        for path in Path(directory).glob(_PATTERN):
            for event in _events(path):
                if event.HasField("summary"):
                    self._write(event)

    def _write(self, event):
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except tf.errors.OpError as error:
            raise self._refused(error) from None

    def _refused(self, error):
        return InputError(f"TensorBoard's events cannot be written to {self._directory}: {error}")


def lives(directory: str) -> dict[str, float]:
    """The processes that have written to a directory, each with the time at which it began, in seconds since 1970."""
    began: dict[str, float] = {}
    for path in Path(directory).glob(_PATTERN):
        for event in _head(path):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                life = event.session_log.msg
                began[life] = min(event.wall_time, began.get(life, event.wall_time))
    return began


def is_empty(directory: str) -> bool:
    """Whether no process has opened an event file in a directory."""
    return next(Path(directory).glob(_PATTERN), None) is None


def steps(directory: str) -> set[int]:
    """The steps at which any process has written something to a directory."""
    paths = Path(directory).glob(_PATTERN)
    return {event.step for path in paths for event in _events(path) if event.HasField("summary")}


def _head(path: Path) -> Iterator[tf.compat.v1.Event]:
    """The first two events of a file: its version, and the START; fewer where a kill has cut it short."""
    return itertools.islice(_events(path), 2)


def _events(path: Path) -> Iterator[tf.compat.v1.Event]:
    """All events of a file, up to where a kill has cut it short."""
    with open(path, "rb") as file:
        while True:
            length = file.read(12)  # uint64, and its checksum
            if len(length) < 12:
                return
            size = struct.unpack("<Q", length[:8])[0]
            record = file.read(size + 4)
            if len(record) < size + 4:
                return
            yield _Event.FromString(record[:-4])


def _wait_for_a_later_name(directory):
    """A file's name begins with the second in which it is made, and then the host."""
    seconds = [path.name.split(".")[3] for path in Path(directory).glob(_PATTERN)]
    newest = max((int(second) for second in seconds if second.isdigit()), default=0)
    wait = newest + 1 - time.time()
    if wait > _LONGEST_WAIT:
        raise InputError(
            f"The newest event file in {directory} is {wait:.0f} s ahead of the clock of {socket.gethostname()}, and TensorBoard "
            "reads files in the order of their times. Set the clock, or use another directory."
        )
    time.sleep(max(wait, 0))
