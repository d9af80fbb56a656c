"""Encodes messages between ranks as JSON and raw arrays. Unlike pickle, decoding runs no code.

A message is

    8 bytes   magic and version     b"PLAIN\\0\\0\\1"
    2 x 8     size of the JSON part, size of the array part (unsigned, big-endian)
              the JSON part
              the array part: the contents of all arrays, in the order of the JSON part

In the JSON part null, booleans, numbers, strings and lists stand for themselves. An object has one key, its type:

    {"dict": {...}}             a dict
    {"array": [DTYPE, SHAPE]}   a numpy array
    {"scalar": DTYPE}           a numpy scalar
"""

import json
import math
import re
import struct
import sys
from typing import Any

import ml_dtypes
import numpy as np

_HEAD = struct.Struct(">8s2Q")
_MAGIC = b"PLAIN\x00\x00\x01"
DEEPEST = 64  # levels of lists and dicts in a callback state or in logs
DEEPEST_STATE = 2 * DEEPEST + 8  # of a callback state as JSON, where a dict may take two levels (`callback_state.py`)
_LARGEST = 1 << 64  # of logged integers, which become floats
_DEEPEST_MESSAGE = DEEPEST_STATE + 8  # a message may be a state within the header of a checkpoint
_BUILTIN = re.compile(r"[<>|][biufcSUmM][1-9][0-9]*(\[[0-9A-Za-z]+\])?")  # forms of `dtype.str`, without objects and fields
_EXTENSIONS = {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")}


def is_logged(number: int) -> bool:
    """Returns whether an integer may be in logs: it becomes a float without an error."""
    return -_LARGEST <= number <= _LARGEST


def encode(value: Any) -> bytes:
    """Encodes plain data as a message.

    Args:
        value: None, a bool, int, float or str, a list or tuple, a dict with string keys, or a numpy array or scalar of any dtype
            without objects and fields; nested up to 144 levels.

    Raises:
        TypeError: if a part of the value has another type.
        ValueError: if the value is nested deeper, or has an integer of thousands of digits.
    """
    contents: list[memoryview] = []
    text = json.dumps(_to_tree(value, contents, 0), separators=(",", ":")).encode("ascii")
    size = sum(len(content) for content in contents)
    return b"".join([_HEAD.pack(_MAGIC, len(text), size), text, *contents])


def decode(message: bytes | memoryview) -> Any:
    """Decodes a message. Tuples become lists; arrays are writable copies.

    Raises:
        ValueError: if `encode` cannot have made the message.
    """
    view = memoryview(message)
    if len(view) < _HEAD.size or len(view) != size_of(view):
        raise ValueError(f"Not a message of plain data: it has {len(view)} bytes, which does not match its head.")
    _, text_size, _ = _HEAD.unpack_from(view)
    text, contents = view[_HEAD.size : _HEAD.size + text_size], view[_HEAD.size + text_size :]
    try:
        tree = json.loads(str(text, "ascii"))
    except (ValueError, RecursionError):
        raise ValueError("Not a message of plain data: its JSON part cannot be read.") from None
    reader = _Reader(contents)
    value = reader.value(tree, 0)
    if reader.left:
        raise ValueError(f"Not a message of plain data: {reader.left} bytes are left after the last array.")
    return value


def size_of(message: bytes | memoryview) -> int:
    """Returns the size in bytes of the message that begins here, according to its head.

    Raises:
        ValueError: if this is not the beginning of a message.
    """
    if len(message) >= _HEAD.size:
        magic, *sizes = _HEAD.unpack_from(message)
        if magic == _MAGIC:
            return _HEAD.size + sum(sizes)
    raise ValueError(f"Not a message of plain data: it begins with {bytes(message[:8])!r}.")


def _to_tree(value, contents, depth):
    if depth > _DEEPEST_MESSAGE:
        raise ValueError(f"Plain data must not be nested more than {_DEEPEST_MESSAGE} levels.")
    if isinstance(value, (np.ndarray, np.generic)):
        name = dtype_name(value.dtype)
        contents.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return {"array": [name, value.shape]} if isinstance(value, np.ndarray) else {"scalar": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_tree(each, contents, depth + 1) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _to_tree(each, contents, depth + 1) for key, each in value.items()}}
    raise TypeError(
        "Plain data must be None, bool, int, float, str, lists, dicts with string keys, numpy arrays or scalars. "
        f"Received: {type(value).__name__} {value!r:.100}"
    )


class _Reader:
    """Builds a value from its JSON part and reads the contents of the arrays in their order."""

    def __init__(self, contents: memoryview):
        self._contents = contents

    @property
    def left(self) -> int:
        """The number of bytes that no array has read."""
        return len(self._contents)

    def value(self, tree: Any, depth: int) -> Any:
        if depth > _DEEPEST_MESSAGE:
            raise ValueError(f"Not a message of plain data: it is nested more than {_DEEPEST_MESSAGE} levels.")
        if isinstance(tree, list):
            return [self.value(each, depth + 1) for each in tree]
        if not isinstance(tree, dict):
            return tree
        match tree:
            case {"dict": dict(entries), **rest} if not rest:
                return {key: self.value(each, depth + 1) for key, each in entries.items()}
            case {"array": [str(name), list(shape)], **rest} if not rest:
                return self._array(name, shape)
            case {"scalar": str(name), **rest} if not rest:
                return self._array(name, [])[()]
        raise ValueError(f"Not a message of plain data: its JSON part has an object with the keys {list(tree)!r:.100}.")

    def _array(self, name: str, shape: list[Any]) -> np.ndarray:
        dtype = dtype_named(name)
        if not all(type(length) is int and 0 <= length <= sys.maxsize for length in shape):
            raise ValueError(f"Not a message of plain data: an array has the shape {shape!r:.100}.")
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._contents):
            raise ValueError(f"Not a message of plain data: an array is larger than the {len(self._contents)} bytes that are left.")
        content, self._contents = self._contents[:size], self._contents[size:]
        array = np.ndarray(shape, dtype, content).copy()
        if dtype.kind == "U" and (array.reshape(-1).view(f"{dtype.str[0]}u4") > sys.maxunicode).any():
            raise ValueError("Not a message of plain data: an array of text has an invalid character.")
        return array


def dtype_name(dtype: np.dtype) -> str:
    """Returns the name of a dtype for `dtype_named`.

    Raises:
        TypeError: if plain data cannot have this dtype.
    """
    if dtype in _EXTENSIONS.values():
        return dtype.name
    if not _BUILTIN.fullmatch(dtype.str):
        raise TypeError(f"Plain data may have only arrays of numbers, booleans, dates and text. Received: dtype {dtype}")
    return dtype.str


def dtype_named(name: str) -> np.dtype:
    """Returns the dtype of a name.

    Raises:
        ValueError: if plain data cannot have this dtype.
    """
    if name in _EXTENSIONS:
        return _EXTENSIONS[name]
    try:
        if _BUILTIN.fullmatch(name):
            return np.dtype(name)
    except (TypeError, ValueError):  # the kind has no such size
        pass
    raise ValueError(f"Not a message of plain data: an array has the dtype {name!r:.100}.")
