"""Whether an HDF5 file is one that a checkpoint may be: groups and plain arrays, all of them in this very file.

HDF5 can do more: lead into other files (external links, external storage, virtual datasets), unpack what is small to any size, load
plugins for that, and let one place be a thousand arrays. A checkpoint needs none of it, and whoever reads one is not to be led
there. So what is read is never larger than the file.
"""

import itertools
import math

import h5py

_KINDS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.OPAQUE, h5py.h5t.BITFIELD)  # an enum: booleans


def check_plain(file: h5py.File, size: int) -> None:
    """Looks at every object of a file, and at no values.

    Args:
        file: the open file.
        size: its bytes.

    Raises:
        ValueError: if an object is neither a group nor a plain array that is stored in the file once; it is named.
    """
    places: list[tuple[int, int, str]] = []
    if h5py.h5o.get_info(file.id).rc != 1:
        raise ValueError("the root has a second name")
    link = file.id.links.visit(lambda name, info: None if info.type == h5py.h5l.TYPE_HARD else name, info=True)
    if link is not None:
        raise ValueError(f"{_shown(link)} is a link")
    wrong = h5py.h5o.visit(file.id, lambda name, info: _wrong(file, name, info, size, places), info=True)
    if wrong:  # HDF5 takes no exceptions
        raise ValueError(wrong)
    places.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(places):
        if begin < end:
            raise ValueError(f"{name} and {other} are in one place")


def check_dataset(dataset: h5py.h5d.DatasetID, size: int) -> tuple[int, int] | None:
    """Returns where the values of a dataset are, begin and end; None for those that HDF5 keeps with the name.

    Args:
        dataset: the open dataset.
        size: the bytes of the file.

    Raises:
        ValueError: if it is no plain array that is stored in the file. The message goes on after the dataset's name.
    """
    how = dataset.get_create_plist()
    layout = how.get_layout()  # asked for first: HDF5 opens the files of a virtual dataset to tell its shape
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or how.get_external_count():
        raise ValueError("is no plain dataset")
    stored, kind = dataset.get_storage_size(), dataset.get_type()
    is_text = kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()
    wanted = stored if is_text else 0 if dataset.shape is None else math.prod(dataset.shape) * kind.get_size()
    if wanted != stored:
        raise ValueError(f"has {stored} bytes, and its shape needs {wanted}")
    _check_type(dataset)
    begin = dataset.get_offset()
    if layout == h5py.h5d.COMPACT or not wanted:
        return None
    if begin is None or begin + wanted > size:
        raise ValueError("ends behind the end of the file")
    return begin, begin + wanted


def _wrong(file, name, info, size, places):
    """What is wrong with an object, or None; appends the place of an array."""
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
    """Reading makes numbers, booleans, bytes or a single text, and none of a size that the shape does not tell."""
    kind = dataset.get_type()
    is_text = kind.get_class() == h5py.h5t.STRING and (not kind.is_variable_str() or dataset.shape == ())
    is_complex = kind.get_class() == h5py.h5t.COMPOUND and kind.dtype.kind == "c"
    if kind.get_class() not in _KINDS and not is_text and not is_complex:
        raise ValueError("is of a type that a checkpoint does not have")
    if h5py.h5a.exists(dataset, b"dtype") and h5py.h5a.open(dataset, b"dtype").shape != ():
        raise ValueError("has a dtype that is no single text")


def _shown(name):
    text = name.decode(errors="replace")
    return text if text.isprintable() else repr(text)
