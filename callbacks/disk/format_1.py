"""Reads checkpoints of format 1, which have SHA-256 in the trailer and identify variables by their index in lists.

The trailer has 80 bytes: magic, counters and size as in format 2, then one SHA-256 over the SHA-256 of each 4 MiB before the
trailer and over the three fields before it.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import h5py
import numpy as np

from callbacks.disk.hdf5_file import read_dataset
from callbacks.errors import InputError

if TYPE_CHECKING:
    import keras

    from callbacks.model.state_tree import StateTree

MAGIC = b"GSTEP\x00\x00\x01"
DIGEST_SIZE = hashlib.sha256().digest_size
MEMBER = "global_step.h5"  # of a `.keras` archive: the group `global_step` has a file of its own there
_LISTS = ("unsaved", "replicated", "metrics")
_CHUNK = 1 << 22
_PIECE = 1 << 19


def digest(descriptor: int, size: int, head: bytes) -> bytes:
    """Computes the digest of a file.

    Args:
        descriptor: the open file.
        size: bytes before the trailer.
        head: the trailer without its digest.

    Raises:
        EOFError: if the file is shorter.
        OSError: if it cannot be read.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as threads:
        leaves: Iterable[bytes] = threads.map(lambda digest_chunk: digest_chunk(), _chunks(descriptor, size))
        return hashlib.sha256(b"".join(leaves) + head).digest()


def values(group: h5py.Group) -> dict[str, np.ndarray]:
    """Reads the variables in the group `global_step`: values, shape [replicas, ...], by list and index (`unsaved/0`).

    Raises:
        ValueError: if a name is no index, or an array has no replicas.
    """
    found = {f"{kind}/{place}": read_dataset(group[kind], place) for kind in _LISTS for place in group[kind]}
    for name, value in found.items():
        if not (re.fullmatch("[a-z]+/[0-9]{1,9}", name) and value.ndim and len(value)):
            raise ValueError(f"{name} is not the value of a variable")
    return found


def named(stored: dict[str, np.ndarray], tree: "StateTree", model: "keras.Model") -> dict[str, np.ndarray]:
    """Returns the same values by their names in the state tree. The model must be built as it was at the save."""
    names = {id(variable): name for name, variable in tree.variables.items()}
    weights = {id(v) for v in model.weights}
    lists = dict(
        zip(
            _LISTS,
            ([v for v in model.variables if id(v) not in weights], model.non_trainable_weights, model.metrics_variables),
            strict=True,
        )
    )
    found = {}
    for key, value in stored.items():
        kind, _, place = key.partition("/")
        if int(place) < len(lists[kind]):
            found[names[id(lists[kind][int(place)])]] = value
    return found


def prepare(model: "keras.Model", stored: list, path: str) -> None:
    """Builds the optimizer and compares the path, shape and dtype of each variable with the file's list.

    Raises:
        InputError: if the file belongs to another model. It names the first variable that differs.
    """
    if model.optimizer is not None and not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer is not None else [])]
    present = [(v.path, list(v.shape), str(v.dtype)) for v in variables]
    for (_, shape, dtype), (name, here_shape, here_dtype) in zip(stored, present, strict=False):
        if (shape, dtype) != (here_shape, here_dtype):
            raise InputError(
                f"{path} is of another model: {name} has shape {tuple(here_shape)} and dtype {here_dtype} here, "
                f"{tuple(shape)} and {dtype} in the file."
            )
    if len(stored) != len(present):
        raise InputError(f"{path} is of another model: it has {len(stored)} variables, this one {len(present)}.")


def _chunks(descriptor: int, size: int) -> list[Callable[[], bytes]]:
    def digest_chunk(begin):
        found, end = hashlib.sha256(), min(begin + _CHUNK, size)
        while begin < end:
            piece = os.pread(descriptor, min(_PIECE, end - begin), begin)
            if not piece:
                raise EOFError
            found.update(piece)
            begin += len(piece)
        return found.digest()

    return [functools.partial(digest_chunk, offset) for offset in range(0, size, _CHUNK)]
