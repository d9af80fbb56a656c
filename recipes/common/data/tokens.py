"""Texts as tokens, in windows with random access: the bytes of files, or a file of token numbers."""

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
BEGIN = b"\0"  # marks the beginning of a file; text does not contain it
HELD_OUT = 20  # one in 20 files is for validation

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip"}  # folders to leave out
_LOOKED_AT = 1 << 20  # tokens at both ends of a file to check at the start


@dataclass(frozen=True)
class Windows:
    """A stream of tokens, divided into consecutive windows. Tokens at the end that do not fill a window are dropped.

    Args:
        tokens: `[n]`, unsigned integers; in memory, or a memory map of a file of any size.
        context: tokens in a window.
        vocabulary: the number of tokens in the vocabulary; every token must be below it.
        name: the name of the stream, for messages.

    Raises:
        InputError: if there is not one window, or if one of the first or last million tokens is not in the vocabulary. Tokens in
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
                f"A window needs {self.context} tokens and the next one. Received: {len(self.tokens)} tokens in {self.name}. "
                "Use a smaller --context, or more data."
            )
        for begin in (0, max(0, len(self.tokens) - _LOOKED_AT)):
            self._check(self.tokens[begin : begin + _LOOKED_AT], begin)

    def __len__(self):
        return (len(self.tokens) - 1) // self.context

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns tokens `[n, context]`, int32, and the next token of each, `[n, context]`, int32."""
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
                f"Tokens must be below --vocabulary-size {self.vocabulary}. "
                f"Received: token {tokens[at]} at position {begin + at} of {self.name}."
            )


def token_files(train: str, *, context: int, vocabulary: int) -> tuple[Windows, Windows]:
    """Opens a file of tokens (uint16 without a header, as in nanoGPT) and `val.bin` beside it, without reading them into memory.

    Args:
        train: the path of the training tokens.
        context, vocabulary: see `Windows`.

    Returns:
        The windows for training and for validation.

    Raises:
        InputError: if a file is missing or contains no tokens.

    Source: https://github.com/karpathy/nanoGPT/tree/master/data/openwebtext
    """
    validation = os.path.join(os.path.dirname(train), "val.bin")
    train_tokens, validation_tokens = (_map(path) for path in (train, validation))
    return Windows(train_tokens, context, vocabulary, train), Windows(validation_tokens, context, vocabulary, validation)


def bytes_of_folder(folder: str, *, context: int, pattern: str = "*") -> tuple[Windows, Windows]:
    """Reads the bytes of all files in a folder and its subfolders, ordered by name, with a zero byte before each file.

    About one in 20 files is held out for validation: files for which the first byte of the SHA-256 of the relative path is a
    multiple of 20. If there is no such file, the last file is held out.

    Args:
        folder: the folder. Tests, installed packages and hidden files are left out.
        context: tokens in a window.
        pattern: the pattern of the file names.

    Returns:
        The windows for training and for validation.

    Raises:
        InputError: if there are fewer than two files, or if a file cannot be read.
    """
    files = _files(Path(folder), pattern)
    if len(files) < 2:
        raise InputError(f"--data must contain at least two files {pattern}, one of them for validation. Received: {folder}.")
    held_out = [name for name in files if _digest(name) % HELD_OUT == 0] or files[-1:]
    train = [name for name in files if name not in set(held_out)]

    def windows(names, part):
        return Windows(_read_all(folder, names), context, BYTES, f"the {len(names)} {part} files of {folder}")

    return windows(train, "training"), windows(held_out, "validation")


def standard_library(context: int) -> tuple[Windows, Windows]:
    """Reads the sources of the running Python, without its tests: 11.4 MB and 0.7 MB with Python 3.11.

    They differ slightly between versions of Python, and so do the results.

    Args:
        context: tokens in a window.

    Returns:
        The windows for training and for validation.
    """
    return bytes_of_folder(sysconfig.get_paths()["stdlib"], context=context, pattern="*.py")


def _files(folder, pattern):
    names = []
    for where, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(".")]
        found = (path.relative_to(folder).as_posix() for path in Path(where).glob(pattern) if path.is_file())
        names += [name for name in found if not os.path.basename(name).startswith(".")]
    return sorted(names)


def _digest(name):
    return hashlib.sha256(os.fsencode(name)).digest()[0]


def _read_all(folder, names):
    try:
        return np.frombuffer(b"".join(BEGIN + Path(folder, name).read_bytes() for name in names), "uint8")
    except OSError as error:
        raise InputError(f"--data {folder} cannot be read: {error}") from None


def _map(path):
    try:
        size = os.path.getsize(path)
        if size % 2 or not size:
            raise InputError(f"A file of tokens must have two bytes (uint16) per token. Received: {path} with {size} bytes.")
        return np.memmap(path, "<u2", "r")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. --data PATH needs `val.bin` beside the training tokens."
        ) from None
