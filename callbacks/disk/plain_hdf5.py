"""Checks that an HDF5 file has only groups and plain arrays, before the HDF5 library opens it.

The library follows any address: a B-tree node that is its own child ends the process with SIGSEGV, a list of free blocks that is
a loop takes all memory, and other loops never end. HDF5 files may also refer to other files (external links, external storage,
virtual datasets), decompress a few bytes to any size, load plugins for that, and store a thousand arrays in the same bytes.

Checkpoints have the first version of the format, which needs few structures. A file with any other structure is refused, and so
is one in which two structures or arrays share bytes. So no structure is reached twice, and a reader needs no more time and
memory than the size of the file permits.

Source: HDF5 File Format Specification (https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html), superblock 0.
"""

import contextlib
import itertools
import math
import struct
from collections.abc import Iterable, Iterator
from io import BufferedIOBase, RawIOBase

_NOWHERE = (1 << 64) - 1  # an undefined address
_SUPERBLOCK = struct.Struct("<8s8BHH4xQQQQ8xQI4xQQ")
_SIGNATURE, _VERSIONS, _ROOT_IS_GROUP = b"\x89HDF\r\n\x1a\n", (0, 0, 0, 0, 0, 8, 8, 0), 1  # with the sizes of addresses and lengths
_LEAF_K, _NODE_K = 4, 16  # half of the entries of a symbol node, half of the children of a B-tree node
_NODE, _SYMBOLS, _ENTRY = struct.Struct("<4sBBHQQ"), struct.Struct("<4sBxH"), struct.Struct("<QQI4xQQ")
_HEAP, _FREE, _LAST_FREE = struct.Struct("<4sB3xQQQ"), struct.Struct("<QQ"), 1
_GLOBAL_HEAP, _HEAP_OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<H6xQ")
_OBJECT, _MESSAGE = struct.Struct("<BxHII4x"), struct.Struct("<HHB3x")
_SPACE, _TYPE, _FILL, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x01, 0x03, 0x05, 0x08, 0x0C, 0x10, 0x11
_HARMLESS = {0x00, 0x0E, 0x12}  # nothing, and times of modification
_NUMBERS, _FLOAT, _TEXT, _COMPOUND, _VARIABLE = {0, 1, 4, 5, 8}, 1, 3, 6, 9  # classes of types; booleans are an enumeration
_LARGEST_TYPE, _DEEPEST = 1024, 256  # bytes, nested groups: the library visits both by recursion
_PATHS = 16  # bytes of all paths for each byte of the file: the library builds them
_SHOWN = 100  # characters of a path in a message


def check_plain(content: RawIOBase | BufferedIOBase, size: int) -> None:
    """Checks every structure of an HDF5 file. It reads no arrays.

    Args:
        content: the file.
        size: its size, in bytes.

    Raises:
        ValueError: if it has anything but groups and plain arrays with bytes of their own. The message names the object.
    """
    _Walk(content, size).run()


def place_of_array(content: RawIOBase | BufferedIOBase, size: int, path: Iterable[str]) -> tuple[int, int]:
    """Returns the first byte of an array, and its size in bytes. Checks only the structures that lead to it.

    Args:
        content: the file.
        size: its size, in bytes.
        path: the names of the groups, and of the array.

    Raises:
        KeyError: if there is no such array.
        ValueError: if a structure is not as in checkpoints.
    """
    return _Walk(content, size).find([name.encode() for name in path])


class _Walk:
    """A walk over the structures of a file."""

    def __init__(self, content: RawIOBase | BufferedIOBase, size: int):
        self._content, self._size = content, size
        self._places: dict[int, int] = {}  # the first byte of each structure and array -> the byte after its last one
        self._left, self._left_for_paths = size, _PATHS * size
        self._global_heaps: set[int] = set()
        self._path = b""

    def run(self) -> None:
        with self._names_errors():
            self._visit_groups()
        for (_, end), (begin, _) in itertools.pairwise(sorted(self._places.items())):
            if begin < end:
                raise ValueError(f"two parts share bytes of the file, from {begin}")

    def find(self, path: list[bytes]) -> tuple[int, int]:
        with self._names_errors():
            is_group, begin, size = True, *self._root()
            for name in path:
                self._path = name
                entries = self._entries(begin, size) if is_group else iter(())
                header, kind = next((entry[1:3] for entry in entries if entry[0] == name), (None, 0))
                if header is None:
                    raise KeyError(_shown(name))
                is_group, begin, size = self._object(header, kind)
        if is_group:
            raise KeyError(_shown(self._path))
        return begin, size

    @contextlib.contextmanager
    def _names_errors(self) -> Iterator[None]:
        """Names the current object in errors."""
        try:
            yield
        except (ValueError, struct.error) as error:
            why = error if isinstance(error, ValueError) else "is cut off"
            raise ValueError(f"{_shown(self._path) or 'the root'} {why}") from None

    def _visit_groups(self) -> None:
        left = [(b"", *self._root(), 0)]
        while left:
            path, tree, heap, depth = left.pop()
            self._path = path
            for name, header, kind, *cached in self._entries(tree, heap):
                self._path = path + b"/" + name if path else name
                self._left_for_paths -= len(self._path)
                if depth == _DEEPEST or self._left_for_paths < 0:
                    raise ValueError("is nested too deeply")
                is_group, inner_tree, inner_heap = self._object(header, kind)
                if kind and not (is_group and [inner_tree, inner_heap] == cached):
                    raise ValueError("contradicts its group")
                if is_group:
                    left.append((self._path, inner_tree, inner_heap, depth + 1))

    def _root(self) -> tuple[int, int]:
        """Returns the addresses of the B-tree and the heap of the root."""
        signature, *found, leaf, node, base, free, _, driver, header, kind, tree, heap = _SUPERBLOCK.unpack(
            self._read(0, _SUPERBLOCK.size)
        )
        if (signature, tuple(found), leaf, node) != (_SIGNATURE, _VERSIONS, _LEAF_K, _NODE_K):
            raise ValueError("is not of the version of HDF5 that checkpoints have")
        if (base, free, driver, kind) != (0, _NOWHERE, _NOWHERE, _ROOT_IS_GROUP):
            raise ValueError("is not as in checkpoints")
        if self._object(header, kind) != (True, tree, heap):
            raise ValueError("is not as in checkpoints")
        return tree, heap

    def _own(self, begin: int, size: int) -> None:
        """Claims bytes for a structure or an array."""
        if begin + size > self._size:
            raise ValueError("ends after the end of the file")
        self._left -= size
        if begin in self._places or self._left < 0:
            raise ValueError(f"shares bytes of the file, from {begin}, with another part")
        self._places[begin] = begin + size

    def _read(self, begin: int, size: int) -> bytes:
        """Claims bytes, and returns them."""
        self._own(begin, size)
        self._content.seek(begin)
        return self._content.read(size)

    def _entries(self, tree: int, heap: int) -> Iterator[tuple]:
        """Yields name, header address, kind and cached addresses of each object in a group."""
        names, last = self._names(heap), b""
        for place in self._symbol_nodes(tree):
            node = self._read(place, _SYMBOLS.size + 2 * _LEAF_K * _ENTRY.size)
            signature, version, count = _SYMBOLS.unpack_from(node)
            if (signature, version) != (b"SNOD", 1) or count > 2 * _LEAF_K:
                raise ValueError("has no usable symbol node")
            for at in range(count):
                offset, *entry = _ENTRY.unpack_from(node, _SYMBOLS.size + at * _ENTRY.size)
                end = names.find(b"\0", offset)
                name = names[offset:end]
                if end < 0 or b"/" in name or name <= last:
                    raise ValueError("has names that are not usable or not in order")
                last = name
                yield name, *entry

    def _symbol_nodes(self, root: int) -> list[int]:
        """Returns the addresses of the symbol nodes in a B-tree, in order."""
        nodes, level = [root], None
        while True:
            children = []
            for before, place, after in zip([_NOWHERE, *nodes], nodes, [*nodes[1:], _NOWHERE], strict=False):
                node = self._read(place, _NODE.size + (4 * _NODE_K + 1) * 8)
                signature, kind, found, count, *beside = _NODE.unpack_from(node)
                level = found if level is None else level
                if (signature, kind, found, beside) != (b"TREE", 0, level, [before, after]) or count > 2 * _NODE_K:
                    raise ValueError("has no usable B-tree")
                children += [struct.unpack_from("<8xQ", node, _NODE.size + 16 * at)[0] for at in range(count)]
            if not level:
                return children
            nodes, level = children, level - 1

    def _names(self, heap: int) -> bytes:
        """Returns the content of a local heap, which has the names of a group's objects."""
        signature, version, size, free, begin = _HEAP.unpack(self._read(heap, _HEAP.size))
        names, seen = self._read(begin, size), {_LAST_FREE}
        while free not in seen:
            seen.add(free)
            free, _ = _FREE.unpack_from(names, free) if free < size and free % 8 == 0 else (_NOWHERE, 0)
        if (signature, version, free) != (b"HEAP", 0, _LAST_FREE):
            raise ValueError("has no usable heap")
        return names

    def _object(self, header: int, kind: int) -> tuple[bool, int, int]:
        """Checks an object. Returns True and the addresses of a group's B-tree and heap, or False and the place of an array."""
        if kind > 1:
            raise ValueError("is a link")
        found: dict[int, bytes] = {}
        for number, content in self._messages(header):
            if number == _ATTRIBUTE:
                self._check_attribute(content)
            elif number in found:
                raise ValueError(f"has two messages of type {number}")
            elif number not in _HARMLESS:
                found[number] = content
        if found.keys() == {_SYMBOL_TABLE}:
            return True, *struct.unpack_from("<QQ", found[_SYMBOL_TABLE])
        if found.keys() | {_FILL} != {_SPACE, _TYPE, _FILL, _LAYOUT}:
            raise ValueError("is neither a plain group nor a plain dataset")
        return False, *self._check_dataset(found)

    def _messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        """Yields the type and the content of each message of an object."""
        version, count, names, size = _OBJECT.unpack(self._read(header, _OBJECT.size))
        if version != 1 or names != 1:
            raise ValueError(f"has {names} names" if version == 1 else "is not of the version that checkpoints have")
        blocks = [(header + _OBJECT.size, size)]
        for begin, size in blocks:  # a continuation appends another one
            block, at = self._read(begin, size), 0
            while at < size:
                number, length, flags = _MESSAGE.unpack_from(block, at)
                at += _MESSAGE.size + length
                content = block[at - length : at]
                if at > size or length % 8 or flags > 1:
                    raise ValueError("has a message that checkpoints do not have")
                if number == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", content))
                else:
                    yield number, content
                count -= 1
        if count:
            raise ValueError("has another number of messages than it says")

    def _check_dataset(self, messages: dict[int, bytes]) -> tuple[int, int]:
        """Checks a dataset, and returns its first byte and its size."""
        kind, size = _type(messages[_TYPE])
        rank, elements = _shape(messages[_SPACE])
        version, layout, begin, stored = struct.unpack_from("<BBQQ", messages[_LAYOUT])
        if (version, layout) != (3, 1) or any(messages.get(_FILL, b"")[4:]):
            raise ValueError("is not a plain dataset")
        if stored != elements * size:
            raise ValueError(f"has {stored} bytes, but its shape needs {elements * size}")
        if kind == _VARIABLE and stored:
            if rank:
                raise ValueError("has a type that checkpoints do not use: neither numbers, bytes nor one text")
            self._check_text(self._read(begin, stored))
        elif stored:
            self._own(begin, stored)
        return begin, stored

    def _check_attribute(self, content: bytes) -> None:
        version, *lengths = struct.unpack_from("<BxHHH", content)
        name, kind, space = (-(-length // 8) * 8 for length in lengths)
        of, size = _type(content[8 + name :][: lengths[1]])
        value = content[8 + name + kind + space :]
        if version != 1 or of not in (_TEXT, _VARIABLE) or _shape(content[8 + name + kind :][:space])[0] or len(value) < size:
            raise ValueError("has an attribute that is not a single text")
        if of == _VARIABLE:
            self._check_text(value)

    def _check_text(self, element: bytes) -> None:
        """Checks the global heap of a text of variable length."""
        _, heap, _ = struct.unpack_from("<IQI", element)
        if heap in self._global_heaps or not heap:  # an empty text is in no heap
            return
        self._global_heaps.add(heap)
        self._content.seek(heap)
        signature, version, size = _GLOBAL_HEAP.unpack(self._content.read(_GLOBAL_HEAP.size))
        if (signature, version) != (b"GCOL", 1) or size < _GLOBAL_HEAP.size:
            raise ValueError("has no usable global heap")
        block, at = self._read(heap, size), _GLOBAL_HEAP.size
        while at + _HEAP_OBJECT.size <= size:
            number, length = _HEAP_OBJECT.unpack_from(block, at)
            at += -(-length // 8) * 8 + (_HEAP_OBJECT.size if number else 0)  # the length of free space includes its header
            if at > size or not (number or length):
                raise ValueError("has no usable global heap")


def _type(content: bytes) -> tuple[int, int]:
    """Returns the class of a type, and the bytes of an element. Numbers, booleans, bytes and texts are allowed."""
    kind, bits, size = struct.unpack_from("<BB2xI", content)
    kind &= 15
    is_text = kind == _TEXT or (kind == _VARIABLE and bits & 15 == 1 and size == 16)
    if len(content) > _LARGEST_TYPE or not (kind in _NUMBERS or is_text or (kind == _COMPOUND and _is_complex(content))):
        raise ValueError("has a type that checkpoints do not use: neither numbers, bytes nor one text")
    return kind, size


def _is_complex(content: bytes) -> bool:
    """Returns whether a compound type is a complex number as h5py stores it: the floats `r` and `i`."""
    members = [content[at : at + 60] for at in range(8, len(content), 60)]
    return [(each[:8].rstrip(b"\0"), each[40] & 15) for each in members if len(each) == 60] == [(b"r", _FLOAT), (b"i", _FLOAT)]


def _shape(content: bytes) -> tuple[int, int]:
    """Returns the rank of a dataspace, and the number of its elements."""
    version, rank, flags, kind = struct.unpack_from("<4B", content)
    if version not in (1, 2) or rank > 32 or flags > 1:
        raise ValueError("has no usable shape")
    if version == 2 and kind == 2:  # it has no elements
        return 0, 0
    return rank, math.prod(struct.unpack_from(f"<{rank}Q", content, 8 if version == 1 else 4))


def _shown(path: bytes) -> str:
    text = path.decode(errors="replace")
    return (text if text.isprintable() else repr(text))[:_SHOWN]
