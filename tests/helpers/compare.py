"""Reads checkpoints with h5py alone, and compares them."""

import io
import zipfile

import h5py
import numpy as np

from callbacks.disk.stored_header import read_header


def datasets(path):
    """Returns every array of a `.weights.h5` file except our own group: name -> value."""
    found = {}
    with h5py.File(path, "r") as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and not name.startswith("global_step"):
                found[name] = item[()]

        file.visititems(visit)
    return found


def lasting_header(path):
    """Returns the header of a checkpoint, without the directory, the save interval and measured times."""
    header = read_header(str(path))
    header["callbacks"].pop("GlobalStepTensorBoard-1", None)
    for flag in ("workdir", "save_freq"):
        header["callbacks"].get("RunFlags-1", {}).get("flags", {}).pop(flag, None)
    return header


def assert_same_weights(one, other):
    """Checks that two checkpoints contain bit-identical weights and optimizer state."""
    a, b = datasets(one), datasets(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_rest(one, other):
    """Checks that two checkpoints agree in counters, history, logs and the values of each replica."""
    header, expected = lasting_header(one), lasting_header(other)
    assert header.keys() == expected.keys()
    for key in header:
        assert header[key] == expected[key], key
    with h5py.File(one, "r") as a, h5py.File(other, "r") as b:
        for i, variable in enumerate(header["beside"]):
            stored, expected = (file[f"global_step/variables/{i}"][()] for file in (a, b))
            np.testing.assert_array_equal(stored, expected, err_msg=variable)


def arrays(path):
    """Returns every array of a checkpoint except the header: name -> type, shape and bytes."""
    found, source = {}, path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))

    def note(name, node):
        if isinstance(node, h5py.Dataset) and name != "global_step/header":
            found[name] = (node.dtype, node.shape, node[()].tobytes())

    with h5py.File(source, "r") as file:
        file.visititems(note)
    return found
