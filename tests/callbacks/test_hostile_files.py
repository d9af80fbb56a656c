"""Malicious files: each is quickly named in one line, opens no other file, and needs little more memory than its size.

All of them verify: whoever makes such a file computes its checksum too. What they lead to is a FIFO, so that who opens it waits
until the test is ended.
"""

import os
import struct

import h5py
import numpy as np
import pytest
from hostile import assert_refused, hdf5_of, put_hdf5
from small import fit, small_model

from callbacks import GlobalStepCheckpoint, latest_checkpoint

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def copies(copies, tmp_path):
    """Returns copies beside a FIFO, on which a reader would block forever."""
    os.mkfifo(tmp_path / "elsewhere")
    return copies


def external_link(file, elsewhere):
    del file["global_step/header"]
    file["global_step/header"] = h5py.ExternalLink(elsewhere, "/header")


def external_group(file, elsewhere):
    del file["global_step"]
    file["global_step"] = h5py.ExternalLink(elsewhere, "/")


def external_link_among_the_weights(file, elsewhere):
    name = next(iter(file["layers"]))
    del file["layers"][name]
    file["layers"][name] = h5py.ExternalLink(elsewhere, "/")


def external_storage(file, elsewhere):
    file["global_step"].create_dataset("more", (5,), "f8", external=[(elsewhere, 0, 40)])


def virtual_dataset(file, elsewhere):
    layout = h5py.VirtualLayout((5,), "f8")
    layout[:] = h5py.VirtualSource(elsewhere, "data", (5,))
    file["global_step"].create_virtual_dataset("more", layout)


def growing_virtual_dataset(file, elsewhere):
    """HDF5 opens its sources to determine its shape."""
    layout = h5py.VirtualLayout((5,), "f8", maxshape=(None,))
    source = h5py.VirtualSource(elsewhere, "data", (5,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file["global_step"].create_virtual_dataset("more", layout)


def loop_of_soft_links(file, elsewhere):
    file["global_step/one"], file["global_step/other"] = h5py.SoftLink("/global_step/other"), h5py.SoftLink("/global_step/one")


def header_that_is_a_loop(file, elsewhere):
    del file["global_step/header"]
    file["global_step/header"] = h5py.SoftLink("/global_step/header")


def group_in_itself(file, elsewhere):
    file["global_step/again"] = file["global_step"]


def one_array_under_two_names(file, elsewhere):
    file["global_step/more"] = file["global_step/header"]


def enormous_header(file, elsewhere):
    del file["global_step/header"]
    file["global_step"].create_dataset("header", (1 << 40,), "u1")


def header_in_enormous_pieces(file, elsewhere):
    del file["global_step/header"]
    file["global_step"].create_dataset("header", (1 << 40,), "u1", chunks=(1 << 20,))


def packed_header(file, elsewhere):
    del file["global_step/header"]
    file["global_step"].create_dataset("header", data=np.zeros(1 << 28, "u1"), compression="gzip")


def filter_that_is_a_plugin(file, elsewhere):
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_chunk((10,))
    how.set_filter(32004, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file["global_step"].id, b"more", h5py.h5t.STD_U8LE, h5py.h5s.create_simple((10,)), dcpl=how)


def objects(file, elsewhere):
    file["global_step"].create_dataset("more", data=["a"] * 3, dtype=h5py.string_dtype())


def references(file, elsewhere):
    file["global_step"].create_dataset("more", data=[file.ref], dtype=h5py.ref_dtype)


def structures(file, elsewhere):
    file["global_step"].create_dataset("more", data=np.zeros(3, [("a", "f4"), ("b", "i4")]))


def a_named_type(file, elsewhere):
    file["global_step/more"] = np.dtype("f8")


HDF5 = [
    external_link, external_group, external_link_among_the_weights, external_storage, virtual_dataset, growing_virtual_dataset,
    loop_of_soft_links, header_that_is_a_loop, group_in_itself, one_array_under_two_names, enormous_header,
    header_in_enormous_pieces, packed_header, filter_that_is_a_plugin, objects, references, structures, a_named_type,
]  # fmt: skip


@pytest.mark.parametrize("make", HDF5)
def test_an_hdf5_file_that_is_more_than_plain_arrays_is_refused(copies, capsys, make):
    directory, older, newer = copies
    content = hdf5_of(newer)
    with h5py.File(content, "r+") as file:
        make(file, str(directory / "elsewhere"))
    put_hdf5(newer, content.getvalue())
    assert_refused(directory, older, newer, capsys, "its state cannot be read: ")


@pytest.mark.parametrize("shift", [0, 8])
def test_arrays_that_lie_over_each_other_are_refused(copies, capsys, shift):
    """A thousand arrays, each as large as the file, would be read as a thousand copies."""
    directory, older, newer = copies
    content = hdf5_of(newer)
    with h5py.File(content, "r+") as file:
        first, second = (file["global_step"].create_dataset(name, data=np.arange(100.0)) for name in ("one", "other"))
        places = first.id.get_offset(), second.id.get_offset()
    raw = content.getvalue()
    before, after = struct.pack("<QQ", places[1], 800), struct.pack("<QQ", places[0] + shift, 800)
    assert raw.count(before) == 1
    put_hdf5(newer, raw.replace(before, after))
    assert_refused(directory, older, newer, capsys, "bytes of the file")


def test_training_skips_a_hostile_file_and_resumes_from_the_checkpoint_before_it(copies):
    directory, older, newer = copies
    content = hdf5_of(newer)
    with h5py.File(content, "r+") as file:
        external_link_among_the_weights(file, str(directory / "elsewhere"))
    put_hdf5(newer, content.getvalue())
    checkpoint = GlobalStepCheckpoint(str(directory / older.name.replace("b5", "b{batch}")), save_freq=5, resume=True)
    with pytest.warns(
        UserWarning, match=f"Skipped {newer}: its state cannot be read: layers is neither a plain group nor a plain dataset"
    ):
        fit(small_model(), checkpoint)
    assert checkpoint.resumed_from.batch == 5
    assert latest_checkpoint(directory).batch == 10
