"""TFRecord files as a data set with random access: a record is read by its number, whatever was read before it.

Where a record of such a file begins is only known from the record before. So the chief walks once through the headers, 12 bytes
for each record, and keeps an index beside the files; a record is then one `pread`, from any rank and thread. Why so:

- array_record and grain have random access too, but for files in another format: ImageNet would have to be written again.
- `tf.data.TFRecordDataset` has none: a shuffle is a buffer that depends on the number of readers and cannot be sought in.
- TensorFlow's own random reader (`tf_record_random_reader`, not public) spends 20 times the CPU time of a `pread` on a record of
  80 kB: it moves its place in the file over a buffer of 8 MB.

The checksums of the headers are checked when the index is made. That of a record's data is checked when the record cannot be
used, to say why: in Python it would cost more than decoding the picture.
"""

import contextlib
import functools
import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from callbacks import InputError
from callbacks.ranks import ranks
from recipes.common.data import BadSample, Source

_HEADER = np.dtype([("length", "<u8"), ("checksum", "<u4")])  # before each record's data; 4 bytes of checksum follow the data
_AROUND = _HEADER.itemsize + 4
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_FORMAT = 1  # of the index
_OPEN_FILES = 512  # kept open; half of what a process may usually have
_WALKERS = 32  # threads that make the index: they wait for the disk
_READERS = 16  # threads that read one batch of records
_WORTH_A_READER = 1 << 18  # bytes: smaller batches come sooner without a thread
_LOOKED_AT = 32  # shards whose first record is tried before training
_REMEMBERED = 256  # reads, to find the one that an error comes from

Use = Callable[[bytes], Any]


@dataclass(frozen=True, eq=False)
class TFRecords:
    """The records of some TFRecord files, one after the other, as a `Source`. Made by `open_tfrecords`.

    Args:
        paths: the files.
        counts: int64 `[files]`, the records in each.
        lengths: int64 `[records]`, the bytes of each.
    """

    paths: list[str]
    counts: np.ndarray
    lengths: np.ndarray
    fetched_together: ClassVar[int] = 64
    _reads: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=_REMEMBERED), repr=False)

    def __len__(self):
        return len(self.lengths)

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor]:
        """The records as they are in the files, string `[n]`."""
        # Not stateful: a stateful function would be called for one batch after the other under op determinism.
        records = tf.numpy_function(self._read, [numbers], tf.string, stateful=False)
        return (tf.ensure_shape(records, numbers.shape),)

    def record(self, number: int) -> bytes:
        """One record.

        Raises:
            BadSample: if the file has become too short for it.
        """
        return self._read(np.array([number]))[0]

    def place(self, number: int) -> str:
        """Where a record is, for a reader: its file, and its number in it."""
        shard = int(np.searchsorted(self._ends, number, "right"))
        return f"{self.paths[shard]}, record {number - int(self._ends[shard] - self.counts[shard])} (the first is 0)"

    def problem(self, number: int, use: Use) -> str | None:
        """What is wrong with a record, if `use` cannot use it: one line that names file and record."""
        try:
            record = self.record(number)
            use(record)
        except tf.errors.OpError as error:
            reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*|\s+", " ", error.message).strip()
            if not self._is_as_written(number, record):
                reason = f"its bytes are not those that were written, by their checksum ({reason})"
            return f"{self.place(number)}: {reason}"
        except BadSample as error:
            return str(error)
        return None

    def recently_read(self) -> Iterator[int]:
        """The numbers of the records that were read last, in the order of reading."""
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
        return int.from_bytes(stored, "little") == _masked_checksums(np.frombuffer(record, np.uint8)[np.newaxis])[0]

    @functools.cached_property
    def _ends(self):
        return np.cumsum(self.counts)

    @functools.cached_property
    def _offsets(self):
        """Where the data of each record begins in its file, int64 `[records]`."""
        ends = np.cumsum(self.lengths + _AROUND)
        begins = ends - self.lengths - _AROUND
        first = begins[self._ends - self.counts]
        return begins - np.repeat(first, self.counts) + _HEADER.itemsize

    @functools.cached_property
    def _threads(self):
        return ThreadPoolExecutor(_READERS, "records")


def open_tfrecords(directory: str, split: str, use: Use) -> TFRecords:
    """The records of `DIRECTORY/SPLIT-00000-of-01024` and so on. A collective of all ranks.

    The chief alone looks for the files, and makes the index where there is none that still fits their sizes and times of change:
    beside the files, or under `~/.cache` where that cannot be written to. The other ranks get it from the chief, and check
    that they see files of the same sizes.

    Args:
        directory: with the shards.
        split: how their names begin.
        use: called with some records, and raises an error of TensorFlow for one that cannot be used.

    Raises:
        InputError: if there are no such files, some are missing, empty, cut off or no TFRecord files, or `use` fails.

    Example:

    >>> train = open_tfrecords("/data/imagenet", "train", use=lambda record: tf.io.parse_single_example(record, FEATURES))
    >>> train.record(1_000_000)
    """
    paths, sizes, counts, lengths = ranks().on_chief(lambda: _index(directory, split))
    records = TFRecords(paths, counts, lengths)
    _refuse_other_files(paths, sizes)
    ranks().on_chief(lambda: _try_some(records, use))
    return records


@contextlib.contextmanager
def naming_bad_records(*sources: Source, use: Use) -> Iterator[None]:
    """Has an error of TensorFlow inside name the record that it comes from, if it comes from one.

    TensorFlow's own says what failed, and not for which element of a dataset. So the records that were read last are tried again.

    Args:
        sources: data sets; those that are no `TFRecords` are left alone.
        use: as in `open_tfrecords`.

    Raises:
        BadSample: in place of an error that a record is the cause of.
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


def _index(directory: str, split: str) -> tuple[list[str], list[int], np.ndarray, np.ndarray]:
    """On the chief: the shards' paths, sizes and counts, and the length of each record."""
    names = _shards(directory, split)
    paths = [os.path.join(directory, name) for name in names]
    states = [os.stat(path) for path in paths]
    keys = [(name, state.st_size, state.st_mtime_ns) for name, state in zip(names, states, strict=True)]
    places = _index_places(directory, f".{split}-of-{len(names):05d}.index.npz")
    known: dict[tuple[str, int, int], np.ndarray] = {}
    for place in places:
        known |= _read_index(place)
    new = [path for path, key in zip(paths, keys, strict=True) if key not in known]
    if new:
        began = time.perf_counter()
        with ThreadPoolExecutor(_WALKERS) as threads:
            walked = dict(zip(new, threads.map(_walk, new), strict=True))
        known |= {key: walked[path] for path, key in zip(paths, keys, strict=True) if path in walked}
    found = [known[key] for key in keys]
    if new:
        kept = _write_index(places, keys, found)
        seconds = time.perf_counter() - began
        print(
            f"index        {sum(map(len, walked.values()))} records of {split} found in {seconds:.1f} s, kept in {kept}", flush=True
        )
    return paths, [state.st_size for state in states], np.array([len(each) for each in found]), np.concatenate(found)


def _shards(directory: str, split: str) -> list[str]:
    """The names of all shards, in order."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise InputError(f"--data is a folder with {split}-00000-of-01024 and so on. It cannot be read: {error}") from None
    matches = [match for name in names if (match := _SHARD.fullmatch(name)) and match["split"] == split]
    counts = sorted({int(match["count"]) for match in matches})
    if not counts:
        raise InputError(f"--data is a folder with {split}-00000-of-01024 and so on. There is no such file in {directory}.")
    if len(counts) > 1:
        sets = " and ".join(f"{split}-*-of-{count:05d}" for count in counts)
        raise InputError(f"--data is a folder with one set of files for {split}. {directory} has {sets}.")
    expected = [f"{split}-{number:05d}-of-{counts[0]:05d}" for number in range(counts[0])]
    missing = sorted(set(expected) - set(names))
    if missing:
        raise InputError(
            f"{directory} has {counts[0] - len(missing)} of {counts[0]} files for {split}. The first missing: {missing[0]}"
        )
    return expected


def _walk(path: str) -> np.ndarray:
    """The lengths of a file's records, int64 `[records]`, from their headers alone."""
    headers, offset = bytearray(), 0
    file = _File(path)
    size = os.fstat(file.descriptor).st_size
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # or the system would read what lies between, too
    while offset < size:
        header = os.pread(file.descriptor, _HEADER.itemsize, offset)
        if len(header) < _HEADER.itemsize:
            break
        headers += header
        offset += int.from_bytes(header[:8], "little") + _AROUND
    found = np.frombuffer(bytes(headers), _HEADER)
    wrong = _masked_checksums(found["length"].copy().view(np.uint8).reshape(-1, 8)) != found["checksum"]
    if wrong.any():
        first = int(np.argmax(wrong))
        what = "is damaged from" if first else "is no TFRecord file, or damaged from"
        raise InputError(f"{path} {what} record {first} (the first is 0) on: the checksum of its length is wrong.")
    if offset != size:
        cut_off = len(found) - (offset > size)
        raise InputError(f"{path} is cut off in record {cut_off} (the first is 0): it ends at byte {size}. Copy it again.")
    if not len(found):
        raise InputError(f"{path} is empty. A data set has records in each of its files.")
    return found["length"].astype(np.int64)


def _refuse_other_files(paths: list[str], sizes: list[int]) -> None:
    """Raises, on every rank, if one does not see the chief's files: on another host, say, with a copy of its own."""
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
            raise InputError(f"All ranks have to see the same files. {each}")


def _try_some(records: TFRecords, use: Use) -> None:
    """Raises for a first record that cannot be used, of shards all over the data set."""
    first = np.cumsum(records.counts) - records.counts
    for number in first[:: -(-len(first) // _LOOKED_AT)].tolist():
        problem = records.problem(number, use)
        if problem:
            raise InputError(problem)


def _index_places(directory: str, name: str) -> list[Path]:
    """Where an index may be: beside the files, or for those that one may only read, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.path.realpath(directory).encode()).hexdigest()[:16]
    return [Path(directory, name), cache / "keras-distributed-recipes" / digest / name]


def _read_index(path: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """What an index says of each shard, by its name, size and time of change. Nothing, if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as index:
            if index["format"] != _FORMAT:
                return {}
            keys = zip(index["names"].tolist(), index["sizes"].tolist(), index["times"].tolist(), strict=True)
            return dict(zip(keys, np.split(index["lengths"], np.cumsum(index["counts"])[:-1]), strict=True))
    except Exception:  # absent, cut off, of somebody else: it is made again
        return {}


def _write_index(places: Iterable[Path], keys: list[tuple[str, int, int]], found: list[np.ndarray]) -> str:
    """Writes an index where that is possible, and says where."""
    names, sizes, times = zip(*keys, strict=True)
    counts, lengths = [len(each) for each in found], np.concatenate(found)
    for place in places:
        temporary = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez(file, format=_FORMAT, names=names, sizes=sizes, times=times, counts=counts, lengths=lengths)
            os.replace(temporary, place)
        except OSError:
            continue
        return str(place)
    return "memory: no folder for it can be written to"


class _File:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if "descriptor" in vars(self):
            os.close(self.descriptor)


@functools.lru_cache(_OPEN_FILES)
def _opened(path: str) -> _File:
    return _File(path)


@functools.cache
def _checksum_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


def _masked_checksums(data: np.ndarray) -> np.ndarray:
    """The checksum that TFRecord files have of a length and of data: CRC-32C, rotated.

    Args:
        data: uint8 `[n, bytes]`.

    Returns:
        uint32 `[n]`.

    Source: "TFRecords format details", https://www.tensorflow.org/tutorials/load_data/tfrecord.
    """
    table, crc = _checksum_table(), np.full(len(data), 0xFFFFFFFF, np.uint32)
    for column in data.T:
        crc = table[(crc ^ column) & 0xFF] ^ crc >> 8
    crc = ~crc
    return (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)
