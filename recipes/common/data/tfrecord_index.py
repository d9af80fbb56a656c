"""The index of a set of TFRecord files: the length of each record, stored beside the files.

The start of a record follows only from the record before it. So the chief reads the 12-byte header of every record once, and stores
the lengths. An index is valid for a file if it contains the file's name, size and modification time, and if the lengths add up to
the size.
"""

import contextlib
import glob
import hashlib
import os
import re
import time
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from callbacks import InputError
from callbacks.disk.folders import flush_folder, make_folder
from recipes.common.data.tfrecord_format import FRAME, check_regular, record_lengths

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_FORMAT = 1  # of the index
_UNFINISHED = 3600.0  # seconds without a write after which a temporary file has no writer
_WALKERS = 32  # threads that read headers: they wait for the disk

Key = tuple[str, int, int]  # name, size and modification time of a file


def read_or_make_index(directory: str, split: str) -> tuple[list[str], list[int], np.ndarray, np.ndarray]:
    """Finds the shards of a split and the lengths of their records. Creates or updates the index if necessary.

    Returns:
        The shards' paths and sizes, the number of records in each, int64 `[shards]`, and the length of each record, int64
        `[records]`.

    Raises:
        InputError: if there are no shards, or if a shard is missing, empty, corrupt or not a TFRecord file.
    """
    names = _shards(directory, split)
    paths = [os.path.join(directory, name) for name in names]
    states = [check_regular(path) for path in paths]
    keys = [(name, state.st_size, state.st_mtime_ns) for name, state in zip(names, states, strict=True)]
    places = _places(directory, f".{split}-of-{len(names):05d}.index.npz")
    known: dict[Key, np.ndarray] = {}
    for place in places:
        known |= _read(place)
    new = {key: path for key, path in zip(keys, paths, strict=True) if key not in known}
    if new:
        began = time.perf_counter()
        with ThreadPoolExecutor(_WALKERS) as threads:
            walked = dict(zip(new, threads.map(record_lengths, new.values()), strict=True))
        known |= walked
        stored = _write(places, keys, [known[key] for key in keys])
        count, seconds = sum(map(len, walked.values())), time.perf_counter() - began
        print(f"index        found {count} records of {split} in {seconds:.1f} s, stored in {stored}", flush=True)
    found = [known[key] for key in keys]
    return paths, [state.st_size for state in states], np.array([len(each) for each in found]), np.concatenate(found)


def _shards(directory: str, split: str) -> list[str]:
    """Returns the names of all shards, in order."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise InputError(f"--data must be a folder with files {split}-00000-of-01024 etc. It cannot be read: {error}") from None
    matches = [match for name in names if (match := _SHARD.fullmatch(name)) and match["split"] == split]
    counts = sorted({int(match["count"]) for match in matches} - {0})
    if not counts:
        raise InputError(f"--data must be a folder with files {split}-00000-of-01024 etc. {directory} has no such file.")
    if len(counts) > 1:
        sets = " and ".join(f"{split}-*-of-{count:05d}" for count in counts)
        raise InputError(f"--data must be a folder with one set of files for {split}. {directory} has {sets}.")
    expected = [f"{split}-{number:05d}-of-{counts[0]:05d}" for number in range(counts[0])]
    missing = sorted(set(expected) - set(names))
    if missing:
        raise InputError(
            f"{directory} has {counts[0] - len(missing)} of {counts[0]} files for {split}. The first missing file: {missing[0]}"
        )
    return expected


def _places(directory: str, name: str) -> list[Path]:
    """Returns the possible paths of an index: beside the files or, if their folder is read-only, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    return [Path(directory, name), cache / "keras-distributed-recipes" / digest / name]


def _read(path: Path) -> dict[Key, np.ndarray]:
    """Returns the record lengths of each shard in an index. Leaves out shards whose size does not match; empty if unreadable."""
    try:
        if not path.is_file() or not _is_stored(path):
            return {}
        with np.load(path, allow_pickle=False) as index:
            if index["format"] != _FORMAT:
                return {}
            keys = zip(index["names"].tolist(), index["sizes"].tolist(), index["times"].tolist(), strict=True)
            lengths = np.split(index["lengths"], np.cumsum(index["counts"])[:-1])
            return {key: each for key, each in zip(keys, lengths, strict=True) if _fits(each, key[1])}
    except Exception:  # truncated, or not an index: create it again
        return {}


def _is_stored(path: Path) -> bool:
    """Returns whether no member is compressed, so that reading the index needs no more memory than its size."""
    with zipfile.ZipFile(path) as archive:
        return all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())


def _fits(lengths: np.ndarray, size: int) -> bool:
    if lengths.dtype != np.int64 or not len(lengths) or lengths.min() < 0 or lengths.max() > size:
        return False
    return lengths.sum(dtype=np.float64) + FRAME * len(lengths) == size  # an int64 sum could overflow


def _write(places: Iterable[Path], keys: Sequence[Key], found: Sequence[np.ndarray]) -> str:
    """Writes an index to the first possible path. Returns that path, for a message."""
    names, sizes, times = zip(*keys, strict=True)
    counts, lengths = [len(each) for each in found], np.concatenate(found)
    for place in places:
        temporary = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            make_folder(place.parent)
            _sweep(place)
            try:
                with open(temporary, "xb") as file:  # does not follow a link that another user made
                    np.savez(file, format=_FORMAT, names=names, sizes=sizes, times=times, counts=counts, lengths=lengths)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, place)
                flush_folder(place.parent)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        except OSError:
            continue
        return str(place)
    return "memory, because no folder for it can be written"


def _sweep(place: Path) -> None:
    """Removes unfinished indices of dead processes on any host, and of an earlier process with this pid."""
    for path in place.parent.glob(f"{glob.escape(place.name)}.*"):
        with contextlib.suppress(OSError):  # another run has removed it, or it belongs to another user in a sticky folder
            if path.name.endswith(f".{os.getpid()}") or time.time() - path.lstat().st_mtime > _UNFINISHED:
                path.unlink()
