"""Checks that an HDF5 file has only groups and plain arrays, all of them inside the file.

HDF5 files may also refer to other files (external links, external storage, virtual datasets), decompress a few bytes to any size,
load plugins for that, and store a thousand arrays in the same bytes. Checkpoints need none of this, so a file that uses it is
refused, and a reader never needs more memory than the size of the file.
"""

import itertools
import math

import h5py

_KINDS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.OPAQUE, h5py.h5t.BITFIELD)  # booleans are an enum


def check_plain(file: h5py.File, size: int) -> None:
    """Checks every object of a file without reading values.

    Args:
        file: the open file.
        size: the size of the file, in bytes.

    Raises:
        ValueError: if an object is neither a group nor a plain array with bytes of its own in the file. The message names it.
    """
    places: list[tuple[int, int, str]] = []
    if h5py.h5o.get_info(file.id).rc != 1:
        raise ValueError("the root has a second name")
    link = file.id.links.visit(lambda name, info: None if info.type == h5py.h5l.TYPE_HARD else name, info=True)
    if link is not None:
        raise ValueError(f"{_shown(link)} is a link")
    wrong = h5py.h5o.visit(file.id, lambda name, info: _wrong(file, name, info, size, places), info=True)
    if wrong:  # HDF5 does not pass exceptions on
        raise ValueError(wrong)
    places.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(places):
        if begin < end:
            raise ValueError(f"{name} and {other} share bytes of the file")


def check_dataset(dataset: h5py.h5d.DatasetID, size: int) -> tuple[int, int] | None:
    """Returns the first byte of a dataset's values and the byte after the last one; None if HDF5 stores them in the header.

    Args:
        dataset: the open dataset.
        size: the size of the file, in bytes.

    Raises:
        ValueError: if it is not a plain array in the file. The message is meant to follow the dataset's name.
    """
    how = dataset.get_create_plist()
    layout = how.get_layout()  # first, since HDF5 opens the files of a virtual dataset to find its shape
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or how.get_external_count():
        raise ValueError("is not a plain dataset")
    stored, kind = dataset.get_storage_size(), dataset.get_type()
    is_text = kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()
    wanted = stored if is_text else 0 if dataset.shape is None else math.prod(dataset.shape) * kind.get_size()
    if wanted != stored:
        raise ValueError(f"has {stored} bytes, but its shape needs {wanted}")
    _check_type(dataset)
    begin = dataset.get_offset()
    if layout == h5py.h5d.COMPACT or not wanted:
        return None
    if begin is None or begin + wanted > size:
        raise ValueError("ends after the end of the file")
    return begin, begin + wanted


def _wrong(file, name, info, size, places):
    """Returns what is wrong with an object, or None; appends the place of an array to `places`."""
    if info.type not in (h5py.h5o.TYPE_GROUP, h5py.h5o.TYPE_DATASET):
        return f"{_shown(name)} is neither a group nor a dataset"
    if info.rc != 1:
        return f"{_shown(name)} has {info.rc} names"
    if info.type == h5py.h5o.TYPE_DATASET:
        try:
            place = check_dataset(h5py.h5d.open(file.id, name), size)
        except Exception as error:
            return f"{_shown(name)} {error}"
        if place:
            places.append((*place, _shown(name)))
    return None


def _check_type(dataset):
    """Checks that a dataset has numbers, booleans, bytes or a single text, so that its shape determines its size."""
    kind = dataset.get_type()
    is_text = kind.get_class() == h5py.h5t.STRING and (not kind.is_variable_str() or dataset.shape == ())
    is_complex = kind.get_class() == h5py.h5t.COMPOUND and kind.dtype.kind == "c"
    if kind.get_class() not in _KINDS and not is_text and not is_complex:
        raise ValueError("has a type that checkpoints do not use")
    if h5py.h5a.exists(dataset, b"dtype") and h5py.h5a.open(dataset, b"dtype").shape != ():
        raise ValueError("has a dtype attribute that is not a single text")


def _shown(name):
    text = name.decode(errors="replace")
    return text if text.isprintable() else repr(text)
