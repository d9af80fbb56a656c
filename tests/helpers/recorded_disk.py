"""Records with strace what a program does to a directory: the changes, and the flushes that make them durable.

POSIX promises of a power cut only this: what `fsync` of a file has returned for is on the disk (its content, not its name), and
what `fsync` of a directory has returned for is on the disk (the names in it). All else may be there or not, in any order.
Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, whose ALICE replays programs in this way.
"""

import itertools
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

_CALLS = (
    "open,openat,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,dup,dup2,dup3"
)
_LINE = re.compile(
    r"(?P<begin>\d+\.\d+) (?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(<[^>]*>)?[^<]*<(?P<seconds>[0-9.]+)>"
)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(?P<number>\d+)(<(?P<path>(\\x[0-9a-f]{2})*)>$)?")


class NotFollowed(Exception):
    """The recording of a file differs from the file."""


@dataclass
class Change:
    """A change of one object: the names in a directory, or the content of a file.

    Args:
        of: the object's number; 0 is the directory that was watched.
        begin, end: when, in seconds. What two threads do at one time has no order.
        what: `make`, `rename` or `unlink` with names; `write` or `truncate` with an offset.
    """

    of: int
    begin: float
    end: float
    what: str
    name: str = ""
    new_name: str = ""
    target: int = -1  # the object that gets the name
    offset: int = 0
    data: bytes = b""
    durable_from: float = float("inf")  # when a flush of the object returned that began after the change


@dataclass
class Recording:
    """The changes of a directory.

    Args:
        paths: object -> the first path that it had, from the directory that was watched.
        directories: the objects that are directories.
        changes: in the order in which they began.
        printed: when each line of standard output was written, and the line.
        end: after all of it.
    """

    paths: dict[int, str] = field(default_factory=lambda: {0: ""})
    directories: set[int] = field(default_factory=lambda: {0})
    changes: list[Change] = field(default_factory=list)
    printed: list[tuple[float, str]] = field(default_factory=list)
    end: float = 0.0

    def part(self, belongs: Callable[[str], bool]) -> "Recording":
        """Returns only the changes of objects in a part of the paths, and of their parent directories."""
        of = {number for number, path in self.paths.items() if belongs(path)}
        leading = {parent for number in of for parent in _parents(self.paths[number])}
        of |= {number for number, path in self.paths.items() if path in leading}
        return replace(self, changes=[change for change in self.changes if change.of in of])


def _parents(path):
    return {"", *("/".join(path.split("/")[:count]) for count in range(1, path.count("/") + 1))}


def record(directory: Path, command: Sequence[str], **options) -> Recording:
    """Runs a program and records its changes of a directory. It must not start programs that change files there."""
    reader = _Reader(str(directory))
    traces = directory.with_name(f"{directory.name}-traces")
    traces.mkdir()
    strace = ["strace", "-f", "-ff", "--seccomp-bpf", "-qq", "-ttt", "-T", "-y", "-xx", "-s", str(1 << 24), "-o", traces / "of"]
    done = subprocess.run([*strace, "-e", f"trace={_CALLS}", *command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    lines = [line for path in traces.iterdir() for line in path.read_text().splitlines()]
    recording = reader.read(lines)
    for path, content in tree(recording, recording.changes).items():
        if content is not None and content != (directory / path).read_bytes():
            raise NotFollowed(path)
    return recording


def _decode(text):
    return bytes.fromhex(text.replace("\\x", ""))


class _Reader:
    """Follows names and positions through a trace.

    The path beside each descriptor (`strace -y`) says which file it is. The times do not: while one thread waits for its `open` to
    return, another may close the descriptor that it gets, and what strace prints of both does not say which came first.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._objects = {directory: 0}
        self._positions: dict[tuple[int, int], int] = {}  # of a descriptor in an object
        self._recording = Recording()
        self._numbers = itertools.count(1)
        for parent, names, _ in os.walk(directory):
            for name in sorted(names):
                self._make_directory(parent, name, 0.0, 0.0)

    def read(self, lines: Sequence[str]) -> Recording:
        found = sorted((match for line in lines if (match := _LINE.match(line))), key=lambda match: float(match["begin"]))
        flushes: list[tuple[int, float, float]] = []
        for match in found:
            begin = float(match["begin"])
            end = begin + float(match["seconds"])
            self._recording.end = max(end, self._recording.end)
            call, result = match["call"], int(match["result"])
            texts = [_decode(text) for text in _TEXT.findall(match["arguments"])]
            rest = _TEXT.sub("TEXT", match["arguments"]).split(", ")
            if call in ("fsync", "fdatasync"):
                _, of = self._descriptor(rest[0])
                flushes += [] if of is None else [(of, begin, end)]
            elif re.fullmatch("(open|creat|mkdir|rename|unlink|rmdir|link|symlink).*", call):
                self._name(call, [os.fsdecode(text) for text in texts], match["arguments"], result, begin, end)
            else:
                self._content(call, rest, b"".join(texts), result, begin, end)
        for change in self._recording.changes:
            of = [end for flushed, begin, end in flushes if flushed == change.of and begin >= change.end]
            change.durable_from = min(of, default=float("inf")) if change.begin else 0.0  # it was there before
        return self._recording

    def _name(self, call, paths, arguments, result, begin, end):
        within = [path for path in paths if path == self._directory or path.startswith(f"{self._directory}/")]
        if not within:
            return
        path = within[0]
        parent, name = os.path.split(path)
        if call.startswith(("open", "creat")):
            if "O_TMPFILE" in arguments or (path not in self._objects and "O_CREAT" not in arguments):
                return  # it has no name, or was there before
            if path not in self._objects:
                self._make(parent, name, begin, end)
            elif "O_TRUNC" in arguments:
                self._change(self._objects[path], begin, end, "truncate")
            self._positions[result, self._objects[path]] = 0
            assert "O_APPEND" not in arguments, arguments
        elif call.startswith("mkdir"):
            self._make_directory(parent, name, begin, end)
        elif call.startswith("rename"):
            assert os.path.dirname(within[1]) == parent, within
            moved = self._objects.pop(path)
            self._objects[within[1]] = moved
            self._change(self._objects[parent], begin, end, "rename", name, os.path.basename(within[1]), moved)
        elif call.startswith("unlink"):
            del self._objects[path]
            self._change(self._objects[parent], begin, end, "unlink", name)
        else:
            raise AssertionError(f"{call} of {within} is not understood")

    def _content(self, call, rest, data, result, begin, end):
        descriptor, of = self._descriptor(rest[0])
        if call == "write" and descriptor == 1:
            self._recording.printed += [(begin, line) for line in data.decode().splitlines()]
        elif of is not None and call != "close":
            if call == "lseek":
                self._positions[descriptor, of] = result
            elif call == "write":
                position = self._positions[descriptor, of]
                self._change(of, begin, end, "write", offset=position, data=data[:result])
                self._positions[descriptor, of] = position + result
            elif call == "pwrite64":
                self._change(of, begin, end, "write", offset=int(rest[-1]), data=data[:result])
            elif call == "ftruncate":
                self._change(of, begin, end, "truncate", offset=int(rest[-1]))
            else:
                raise AssertionError(f"{call} of a descriptor is not understood")

    def _descriptor(self, argument):
        """Returns the number of a descriptor, and its object; None if that is not in the directory, or has no name there."""
        found = _DESCRIPTOR.match(argument)
        return int(found["number"]), self._objects.get(os.fsdecode(_decode(found["path"] or "")))

    def _make(self, parent, name, begin, end):
        number, path = next(self._numbers), os.path.join(parent, name)
        self._objects[path] = number
        self._recording.paths[number] = os.path.relpath(path, self._directory)
        self._change(self._objects[parent], begin, end, "make", name, target=number)
        return number

    def _make_directory(self, parent, name, begin, end):
        self._recording.directories.add(self._make(parent, name, begin, end))

    def _change(self, of, begin, end, what, name="", new_name="", target=-1, offset=0, data=b""):
        self._recording.changes.append(Change(of, begin, end, what, name, new_name, target, offset, data))


Tree = dict[str, bytes | None]  # path -> content; None for a directory


def tree(recording: Recording, applied: Sequence[Change]) -> Tree:
    """Returns the content of the directory if only these changes have reached the disk."""
    names: dict[int, dict[str, int]] = {}
    contents: dict[int, bytearray] = {}
    for change in applied:
        entries = names.setdefault(change.of, {})
        if change.what == "make":
            entries[change.name] = change.target
        elif change.what == "rename":
            entries.pop(change.name, None)
            entries[change.new_name] = change.target
        elif change.what == "unlink":
            entries.pop(change.name, None)
        else:
            content = contents.setdefault(change.of, bytearray())
            if change.what == "truncate":
                del content[change.offset :]
            content.extend(bytes(max(change.offset - len(content), 0)))
            content[change.offset : change.offset + len(change.data)] = change.data

    def walk(directory: int, path: str) -> Iterator[tuple[str, bytes | None]]:
        for name, number in names.get(directory, {}).items():
            is_directory = number in recording.directories
            yield path + name, None if is_directory else bytes(contents.get(number, b""))
            if is_directory:
                yield from walk(number, f"{path}{name}/")

    return dict(walk(0, ""))


def power_cuts(recording: Recording) -> Iterator[tuple[float, Tree]]:
    """Yields possible states after a power cut: a time, and the content of the directory after a cut at that time.

    At each time what was flushed is there. Of the rest: nothing, all, all up to one change, all but one, one alone, all with a
    write that is torn or of which only the size has come to the disk, and some at random.
    """
    choose, seen = random.Random(0), set()
    moments = {change.begin for change in recording.changes} | {change.durable_from for change in recording.changes}
    for moment in sorted({*(moment for moment in moments if moment < recording.end), recording.end}):
        done = [(i, change) for i, change in enumerate(recording.changes) if change.begin <= moment]
        pending = [i for i, change in done if change.durable_from > moment]
        printed = sum(time <= moment for time, _ in recording.printed)
        if (tuple(pending), printed, len(done)) in seen:
            continue
        seen.add((tuple(pending), printed, len(done)))
        for dropped, torn in _choices(recording, pending, choose):
            yield moment, tree(recording, [torn.get(i, change) for i, change in done if i not in dropped])


def _choices(recording, pending, choose) -> Iterator[tuple[set[int], dict[int, Change]]]:
    everything = set(pending)
    yield everything, {}
    for place, i in enumerate(pending):
        yield set(pending[place:]), {}
        yield {i}, {}
        yield everything - {i}, {}
        change = recording.changes[i]
        if change.what == "write":
            for data in (change.data[: len(change.data) // 2], bytes(len(change.data))):
                yield set(), {i: replace(change, data=data)}
                yield set(pending[place + 1 :]), {i: replace(change, data=data)}
    yield set(), {}
    for _ in range(10):
        yield {i for i in pending if choose.random() < 0.5}, {}
