"""Texts as tokens: bytes of files, or a file of token numbers, and windows of them with random access."""

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow as tf

from callbacks import InputError

BYTES = 256  # the vocabulary of bytes
BEGIN = b"\0"  # stands before each file's bytes; text has none
HELD_OUT = 20  # one file in so many is for validation

_NO_PART = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip"}  # folders
_LOOKED_AT = 1 << 20  # tokens at either end of a file that are checked at the start


@dataclass(frozen=True)
class Windows:
    """A stream of tokens, cut into windows that follow one another; what is left of it at the end is no window.

    Args:
        tokens: `[n]`, unsigned integers; in memory, or a memory map of a file of any size.
        context: tokens of a window.
        vocabulary: every token is below this.
        name: of the stream, for messages.

    Raises:
        InputError: if there is not one window, or one of the first or the last million tokens is not in the vocabulary. Those
            between are checked when they are read.
    """

    tokens: np.ndarray
    context: int
    vocabulary: int
    name: str
    fetched_together: ClassVar[int] = 64

    def __post_init__(self):
        if not len(self):
            raise InputError(
                f"A window needs {self.context} tokens and the one after. Received: {len(self.tokens)} tokens in {self.name}. "
                "Use a smaller --context, or more data."
            )
        for begin in (0, max(0, len(self.tokens) - _LOOKED_AT)):
            self._check(self.tokens[begin : begin + _LOOKED_AT], begin)

    def __len__(self):
        return (len(self.tokens) - 1) // self.context

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Tokens `[n, context]`, int32, and the token after each of them `[n, context]`, int32."""
        windows = tf.numpy_function(self._read, [numbers], tf.int32, stateful=False)
        windows = tf.ensure_shape(windows, [None, self.context + 1])
        return windows[:, :-1], windows[:, 1:]

    def _read(self, numbers):
        windows = np.empty((len(numbers), self.context + 1), "int32")
        for window, number in zip(windows, numbers, strict=True):
            begin = number * self.context
            window[:] = self.tokens[begin : begin + self.context + 1]
            self._check(window, begin)
        return windows

    def _check(self, tokens, begin):
        if tokens.max() >= self.vocabulary:
            at = int(np.argmax(tokens >= self.vocabulary))
            raise InputError(
                f"Tokens are below --vocabulary-size {self.vocabulary}. Received: token {tokens[at]} at position {begin + at} of "
                f"{self.name}."
            )


def token_files(train: str, *, context: int, vocabulary: int) -> tuple[Windows, Windows]:
    """A file of tokens, uint16 without a header, as nanoGPT prepares them, and `val.bin` beside it. Neither is read into memory.

    Args:
        train: the path of the training tokens.
        context, vocabulary: of the windows.

    Returns:
        The windows to train on, and those for validation.

    Raises:
        InputError: if a file is not there, or holds no tokens.

    Source: https://github.com/karpathy/nanoGPT/tree/master/data/openwebtext
    """
    validation = os.path.join(os.path.dirname(train), "val.bin")
    train_tokens, validation_tokens = (_map(path) for path in (train, validation))
    return Windows(train_tokens, context, vocabulary, train), Windows(validation_tokens, context, vocabulary, validation)


def bytes_of_folder(folder: str, *, context: int, pattern: str = "*") -> tuple[Windows, Windows]:
    """The bytes of all files in a folder and those in it, in the order of their names, with a zero byte before each.

    One file in twenty is held out for validation: those with a SHA-256 of the path, relative to the folder, whose first byte is
    a multiple of twenty. Where that is none, the last file is.

    Args:
        folder: where the files are. Tests, other people's packages and hidden files are left out.
        context: of the windows.
        pattern: of the files' names.

    Returns:
        The windows to train on, and those for validation.

    Raises:
        InputError: if there are no two such files, or one cannot be read.
    """
    files = _files(Path(folder), pattern)
    if len(files) < 2:
        raise InputError(f"A folder needs two files {pattern} or more, one of them to validate on. Received: {folder}.")
    held_out = [name for name in files if _digest(name) % HELD_OUT == 0] or files[-1:]
    train = [name for name in files if name not in set(held_out)]

    def windows(names, part):
        return Windows(_read_all(folder, names), context, BYTES, f"the {len(names)} {part} files of {folder}")

    return windows(train, "training"), windows(held_out, "validation")


def standard_library(context: int) -> tuple[Windows, Windows]:
    """The sources of the Python that runs this, as bytes, without its tests: 11.4 MB and 0.7 MB with Python 3.11.

    They differ a little from one version of Python to the next, and so do results.

    Args:
        context: of the windows.

    Returns:
        The windows to train on, and those for validation.
    """
    return bytes_of_folder(sysconfig.get_paths()["stdlib"], context=context, pattern="*.py")


def _files(folder, pattern):
    names = []
    for where, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NO_PART and not name.startswith(".")]
        found = (path.relative_to(folder).as_posix() for path in Path(where).glob(pattern) if path.is_file())
        names += [name for name in found if not os.path.basename(name).startswith(".")]
    return sorted(names)


def _digest(name):
    return hashlib.sha256(os.fsencode(name)).digest()[0]


def _read_all(folder, names):
    try:
        return np.frombuffer(b"".join(BEGIN + Path(folder, name).read_bytes() for name in names), "uint8")
    except OSError as error:
        raise InputError(f"--data {folder} could not be read: {error}") from None


def _map(path):
    try:
        size = os.path.getsize(path)
        if size % 2 or not size:
            raise InputError(f"A file of tokens has two bytes (uint16) for each. Received: {path} with {size} bytes.")
        return np.memmap(path, "<u2", "r")
    except OSError as error:
        raise InputError(
            f"There are no tokens at {path}: {error.strerror}. `val.bin` has to stand beside the training tokens."
        ) from None
