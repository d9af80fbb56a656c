"""Replaces parts of a checkpoint with malicious ones, with a matching checksum, and checks that each reader refuses the file."""

import dataclasses
import io
import json
import resource
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from small import small_model

from callbacks import InputError, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.disk import files
from callbacks.resuming.restoring import named_checkpoint

MEMORY = 100_000  # KiB that reading such a file may allocate


def put(path, content, **counters):
    """Replaces the content of a file, with a matching trailer, which may claim other counters."""
    files.commit(str(path), dataclasses.replace(files.verify(path), **counters), lambda output: output.write(content))


def hdf5_of(path):
    """Returns the HDF5 part of a checkpoint, in memory."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read("model.weights.h5"))
    return io.BytesIO(path.read_bytes()[: -files.TRAILER_SIZE])


def put_hdf5(path, content, **counters):
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        content = archive_of(list((members | {"model.weights.h5": content}).items()))
    put(path, content, **counters)


def with_header(path, change, **counters):
    """Changes the header of a checkpoint with a function that modifies the parsed header or returns bytes.

    The trailer claims the counters that are given, and so does the name. Returns the path.
    """
    content = hdf5_of(path)
    with h5py.File(content, "r+") as file:
        header = json.loads(file["global_step/header"][()].tobytes())
        changed = change(header)
        del file["global_step/header"]
        file["global_step"]["header"] = np.frombuffer(changed or json.dumps(header).encode(), "u1")
    put_hdf5(path, content.getvalue(), **counters)
    return path.rename(path.with_name(f"b{counters['batch']}{''.join(path.suffixes)}")) if "batch" in counters else path


def archive_of(members, **options):
    """Returns an archive without its comment, which the trailer replaces."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name
        for name, content in members:
            archive.writestr(name, content)
        archive.comment = bytes(files.TRAILER_SIZE)
    return file.getvalue()[: -files.TRAILER_SIZE]


def assert_refused(directory, older, newer, capsys, why=""):
    """Checks that every reader names the newer file in one line, and uses the older one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert latest_checkpoint(directory).path == str(older)
        assert restore(small_model(), newer) is None
    said = [str(each.message) for each in caught if "Skipped" in str(each.message)]
    assert len(said) == 2
    assert all(each.startswith(f"Skipped {newer}: ") and why in each and "\n" not in each for each in said), said
    capsys.readouterr()
    assert main(["list", str(directory)]) == 0
    assert main(["verify", str(directory)]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if str(newer) in line]
    assert len(rows) == 2 and why in rows[1]
    with pytest.raises(InputError) as raised:
        named_checkpoint(str(newer))
    assert str(newer) in str(raised.value) and why in str(raised.value) and "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
