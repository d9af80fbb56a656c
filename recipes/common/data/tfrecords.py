"""TFRecord files as a random-access data set: any record can be read directly.

An index (`tfrecord_index.py`) contains the position of each record; any rank and thread reads a record with one `pread`.
Alternatives that were rejected:

- array_record and grain have random access, but another file format: ImageNet would have to be converted.
- `tf.data.TFRecordDataset` has no random access: it shuffles in a buffer, which depends on the number of readers and cannot seek.
- TensorFlow's random reader (`tf_record_random_reader`, not public) takes 20 times the CPU time of a `pread` for a record of 80 kB,
  because it reads through a buffer of 8 MB.

The checksums of the headers are verified when the index is created. The checksum of a record's data is only verified if the record
cannot be used, to explain the error: in Python, verifying it takes longer than decoding the picture.
"""

import contextlib
import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from callbacks import InputError
from callbacks.ranks import ranks
from recipes.common.data.sources import BadSample, Source
from recipes.common.data.tfrecord_format import FRAME, HEADER, OpenFile, masked_checksums
from recipes.common.data.tfrecord_index import read_or_make_index

_OPEN_FILES = 512  # half of the usual limit of a process
_READERS = 16  # threads that read one batch of records
_WORTH_A_READER = 1 << 18  # bytes; smaller batches are faster without a thread
_LOOKED_AT = 32  # shards whose first record is checked before training
_REMEMBERED = 256  # reads, to find the record that caused an error

Use = Callable[[bytes], Any]


@dataclass(frozen=True, eq=False)
class TFRecords:
    """The records of TFRecord files as a `Source`. Created by `open_tfrecords`.

    Args:
        paths: the files.
        counts: int64 `[files]`, the number of records in each file.
        lengths: int64 `[records]`, the size of each record in bytes.
    """

    paths: list[str]
    counts: np.ndarray
    lengths: np.ndarray
    fetched_together: ClassVar[int] = 64
    _reads: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=_REMEMBERED), repr=False)

    def __len__(self):
        return len(self.lengths)

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor]:
        """Returns the records, string `[n]`."""
        # Under op determinism, a stateful function would be called for one batch after the other.
        records = tf.numpy_function(self._read, [numbers], tf.string, stateful=False)
        return (tf.ensure_shape(records, numbers.shape),)

    def record(self, number: int) -> bytes:
        """Returns one record.

        Raises:
            BadSample: if the file has become too short.
        """
        return self._read(np.array([number]))[0]

    def place(self, number: int) -> str:
        """Returns the file of a record and its number in the file, for a message."""
        shard = int(np.searchsorted(self._ends, number, "right"))
        return f"{self.paths[shard]}, record {number - int(self._ends[shard] - self.counts[shard])} (counted from 0)"

    def problem(self, number: int, use: Use) -> str | None:
        """Returns one line that says why `use` fails for a record; None if it does not fail."""
        try:
            record = self.record(number)
            use(record)
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*|\s+", " ", error.message).strip()
            if not self._is_as_written(number, record):
                reason = f"its checksum is wrong, so its bytes have changed ({reason})"
            return f"{self.place(number)}: {reason}"
        except BadSample as error:
            return str(error)
        return None

    def recently_read(self) -> Iterator[int]:
        """Yields the numbers of the records that were read last, in the order of reading."""
        for numbers in list(self._reads):
            yield from numbers.tolist()

    def _read(self, numbers):
        self._reads.append(numbers)
        shards = np.searchsorted(self._ends, numbers, "right")
        offsets, lengths = self._offsets[numbers], self.lengths[numbers]
        places = list(zip(numbers.tolist(), shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True))
        records = np.empty(len(places), object)
        readers = min(_READERS, int(lengths.sum()) // _WORTH_A_READER)
        if readers < 2:
            records[:] = [self._read_one(place) for place in places]
        else:
            step = -(-len(places) // readers)
            parts = [places[i : i + step] for i in range(0, len(places), step)]
            records[:] = [record for part in self._threads.map(self._read_some, parts) for record in part]
        return records

    def _read_some(self, places):
        return [self._read_one(place) for place in places]

    def _read_one(self, place):
        number, shard, offset, length = place
        file = _opened(self.paths[shard])
        record = os.pread(file.descriptor, length, offset)
        if len(record) < length:
            raise BadSample(f"{self.place(number)}: the file has become shorter since its index was made")
        return record

    def _is_as_written(self, number, record):
        file = _opened(self.paths[int(np.searchsorted(self._ends, number, "right"))])
        stored = os.pread(file.descriptor, 4, int(self._offsets[number]) + len(record))
        return int.from_bytes(stored, "little") == masked_checksums(np.frombuffer(record, np.uint8)[np.newaxis])[0]

    @functools.cached_property
    def _ends(self):
        return np.cumsum(self.counts)

    @functools.cached_property
    def _offsets(self):
        """The offset of each record's data in its file, int64 `[records]`."""
        ends = np.cumsum(self.lengths + FRAME)
        begins = ends - self.lengths - FRAME
        first = begins[self._ends - self.counts]
        return begins - np.repeat(first, self.counts) + HEADER.itemsize

    @functools.cached_property
    def _threads(self):
        return ThreadPoolExecutor(_READERS, "records")


def open_tfrecords(directory: str, split: str, use: Use) -> TFRecords:
    """Opens the files `DIRECTORY/SPLIT-00000-of-01024` etc. A collective of all ranks.

    Only the chief searches for the files, and creates the index if there is no valid one: beside the files, or in `~/.cache` if the
    directory cannot be written. The other ranks get the index from the chief, and check that they see files of the same sizes.

    Args:
        directory: the directory of the shards.
        split: the beginning of their names.
        use: called with some records; raises an error of TensorFlow for a record that cannot be used.

    Raises:
        InputError: if files are missing, empty, truncated or not TFRecord files, or if `use` fails.

    Example:

    >>> train = open_tfrecords("/data/imagenet", "train", use=lambda record: tf.io.parse_single_example(record, FEATURES))
    >>> train.record(1_000_000)
    """
    paths, sizes, counts, lengths = ranks().on_chief(lambda: read_or_make_index(directory, split))
    records = TFRecords(paths, counts, lengths)
    _refuse_other_files(paths, sizes)
    ranks().on_chief(lambda: _try_some(records, use))
    return records


@contextlib.contextmanager
def naming_bad_records(*sources: Source, use: Use) -> Iterator[None]:
    """Context manager that adds the name of the record to an error of TensorFlow, if a record caused the error.

    An error of TensorFlow does not say which element of a dataset failed. So the records that were read last are tried again.

    Args:
        sources: data sets; only `TFRecords` are checked.
        use: as in `open_tfrecords`.

    Raises:
        BadSample: instead of an error that a record caused.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for source in sources:
            if isinstance(source, TFRecords):
                for number in source.recently_read():
                    problem = source.problem(number, use)
                    if problem:
                        raise BadSample(problem) from error
        raise


def _refuse_other_files(paths: list[str], sizes: list[int]) -> None:
    """Raises an error on every rank if one of them does not see the files of the chief, on another host for example."""
    problem = None
    for path, size in zip(paths, sizes, strict=True):
        try:
            here = os.stat(path).st_size
        except OSError as error:
            problem = f"cannot read it: {error.strerror}"
        else:
            problem = None if here == size else f"sees {here} bytes"
        if problem:
            problem = f"{path} has {size} bytes on the chief, and rank {ranks().rank} {problem}."
            break
    for each in ranks().gather(problem):
        if each:
            raise InputError(f"All ranks must see the same files. {each}")


def _try_some(records: TFRecords, use: Use) -> None:
    """Raises an error if the first record of a shard cannot be used, for shards all over the data set."""
    first = np.cumsum(records.counts) - records.counts
    for number in first[:: -(-len(first) // _LOOKED_AT)].tolist():
        problem = records.problem(number, use)
        if problem:
            raise InputError(problem)


@functools.lru_cache(_OPEN_FILES)
def _opened(path: str) -> OpenFile:
    return OpenFile(path)
