"""Malicious files: each is quickly named in one line, opens no other file, and needs little more memory than its size.

All of them verify: whoever makes such a file computes its checksum too. What they lead to is a FIFO, so that who opens it waits
until the test is ended.
"""

import contextlib
import io
import json
import os
import resource
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from small import fit, small_model

from callbacks import GlobalStepCheckpoint, InputError, files, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.plain_data import dtype_named
from callbacks.restoring import named_checkpoint

pytestmark = pytest.mark.timeout(60)
MEMORY = 100_000  # KiB that reading such a file may allocate


@pytest.fixture
def copies(copies, tmp_path):
    """Returns copies beside a FIFO, on which a reader would block forever."""
    os.mkfifo(tmp_path / "elsewhere")
    return copies


def put(path, content):
    """Replaces the content of a file, with a matching trailer."""
    files.commit(str(path), files.verify(path), lambda output: output.write(content))


def hdf5_of(path):
    """Returns the HDF5 part of a checkpoint, in memory."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read("model.weights.h5"))
    return io.BytesIO(path.read_bytes()[: -files.TRAILER_SIZE])


def put_hdf5(path, content):
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        content = archive_of(list((members | {"model.weights.h5": content}).items()))
    put(path, content)


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
    said = [str(each.message) for each in caught if "Passed over" in str(each.message)]
    assert len(said) == 2
    assert all(each.startswith(f"Passed over {newer}: ") and why in each and "\n" not in each for each in said), said
    capsys.readouterr()
    assert main(["list", str(directory)]) == 0
    assert main(["verify", str(directory)]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if str(newer) in line]
    assert len(rows) == 2 and why in rows[1]
    with pytest.raises(InputError) as raised:
        named_checkpoint(str(newer))
    assert str(newer) in str(raised.value) and why in str(raised.value) and "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


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


def test_arrays_that_lie_over_each_other_are_refused(copies, capsys):
    """A thousand arrays, each as large as the file, would be read as a thousand copies."""
    directory, older, newer = copies
    content = hdf5_of(newer)
    with h5py.File(content, "r+") as file:
        first, second = (file["global_step"].create_dataset(name, data=np.arange(100.0)) for name in ("one", "other"))
        places = first.id.get_offset(), second.id.get_offset()
    raw = content.getvalue()
    before, after = (struct.pack("<QQ", place, 800) for place in reversed(places))
    assert raw.count(before) == 1
    put_hdf5(newer, raw.replace(before, after))
    assert_refused(directory, older, newer, capsys, "are in one place")


def with_header(path, change):
    """Changes the header of a checkpoint with a function that modifies the parsed header or returns bytes."""
    content = hdf5_of(path)
    with h5py.File(content, "r+") as file:
        header = json.loads(file["global_step/header"][()].tobytes())
        changed = change(header)
        del file["global_step/header"]
        file["global_step"]["header"] = np.frombuffer(changed or json.dumps(header).encode(), "u1")
    put_hdf5(path, content.getvalue())


def text(content):
    return lambda header: content


def without(key):
    return lambda header: header.pop(key) and None


def put_in(value, *keys):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


NAN, LARGE = float("nan"), 10**4000
HEADERS = {
    "no JSON": text(b"no JSON"),
    "no UTF-8": text(b'{"format": "\xff\xfe"}'),
    "deep": text(b"[" * 1_000_000),
    "deep dicts": text(b'{"a":' * 100_000),
    "a number of a million digits": text(b"1" * 1_000_000),
    "a list": text(b"[1, 2]"),
    "empty": text(b"{}"),
    "the format is NaN": put_in(NAN, "format"),
    "the format is a bool": put_in(True, "format"),
    "the format is a list": put_in([2], "format"),
    "a format 1 that is none": put_in(1, "format"),
    **{f"without {key}": without(key) for key in ("format", "template", "counts", "logs", "metrics", "callbacks", "variables")},
    **{f"without {key}": without(key) for key in ("stopped", "metrics_variables", "optimizers", "beside")},
    "NaN batches": put_in(NAN, "counts", "batch"),
    "negative": put_in(-1, "counts", "replicas"),
    "large": put_in(LARGE, "counts", "samples_in_epoch"),
    "a text for a number": put_in("10", "counts", "batch"),
    "counts that nobody knows": put_in(1, "counts", "more"),
    "a template that is none": put_in("b{batch", "template"),
    "a template that is a list": put_in(["b{batch}.keras"], "template"),
    "a template that makes long names": put_in("b{batch:0999999999d}.keras", "template"),
    "metrics that are a list": put_in([], "metrics"),
    "logs that are null": put_in(None, "logs"),
    "callbacks that are a text": put_in("", "callbacks"),
    "stopped by a number": put_in(1, "stopped"),
    "variables without a shape": put_in({"a": [None, "float32", "a"]}, "variables"),
    "variables of too few parts": put_in({"a": [[1]]}, "variables"),
    "an enormous variable": put_in({"a": [[LARGE], "float32", "a"]}, "variables"),
    "variables that nobody named": put_in(["nobody"], "beside"),
    "optimizers without parts": put_in({"a": {}}, "optimizers"),
    "optimizers that are null": put_in({"a": None}, "optimizers"),
}


@pytest.mark.parametrize("trained", [".weights.h5"], indirect=True)
@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_malformed_header_is_refused(copies, capsys, change):
    directory, older, newer = copies
    with_header(newer, change)
    assert_refused(directory, older, newer, capsys, "its state cannot be read: ")


@pytest.mark.parametrize("version", [0, 3, -1, 10**4000])
def test_an_unknown_version_is_one_line_that_names_the_file(copies, version):
    directory, _, newer = copies
    with_header(newer, put_in(version, "format"))
    for look in (latest_checkpoint, lambda path: restore(small_model(), path)):
        with pytest.raises(InputError, match="this version of the callbacks reads formats 1 and 2") as raised:
            look(directory)
        assert str(newer) in str(raised.value) and len(str(raised.value)) < 400 + len(str(newer))


def array_that_is_missing(header):
    header["callbacks"]["Journal-1"] = {"array": [7, "<f8", [2]]}


def type_that_is_code(header):
    header["callbacks"]["Journal-1"] = {"array": [0, "O", [2]]}


@pytest.mark.parametrize("change", [array_that_is_missing, type_that_is_code])
def test_malformed_states_of_callbacks_are_refused_in_one_line(copies, change):
    _, _, newer = copies
    with_header(newer, change)
    with pytest.raises(InputError, match=f"^The state in {newer} cannot be read: ") as raised:
        restore(small_model(), newer)
    assert "\n" not in str(raised.value)
    with contextlib.suppress(ValueError):
        assert dtype_named("O") is None


def central(raw, member):
    """Returns the offset of a member's entry in the central directory."""
    at = raw.rindex(member.encode())
    return raw.rindex(b"PK\x01\x02", 0, at)


def patched(raw, at, form, *values):
    content = bytearray(raw)
    struct.pack_into(form, content, at, *values)
    return bytes(content)


WEIGHTS = "model.weights.h5"
ARCHIVES = {
    "two members of one name": lambda m: archive_of([*m, (WEIGHTS, b"other")]),
    "packed": lambda m: archive_of(m, compression=zipfile.ZIP_DEFLATED),
    "encrypted": lambda m: patched(raw := archive_of(m), central(raw, WEIGHTS) + 8, "<H", 1),
    "larger than the file": lambda m: patched(raw := archive_of(m), central(raw, WEIGHTS) + 20, "<II", 1 << 30, 1 << 30),
    "over the next member": lambda m: patched(raw := archive_of(m), central(raw, "config.json") + 20, "<II", 20_000, 20_000),
    "sizes that differ": lambda m: patched(raw := archive_of(m), central(raw, WEIGHTS) + 24, "<I", 1 << 30),
    "in the place of another": lambda m: patched(raw := archive_of(m), central(raw, WEIGHTS) + 42, "<I", 0),
    "in a place that is none": lambda m: patched(raw := archive_of(m), central(raw, WEIGHTS) + 42, "<I", 77),
    "behind the end": lambda m: patched(raw := archive_of(m), central(raw, WEIGHTS) + 42, "<I", 1 << 30),
    "no weights": lambda m: archive_of([each for each in m if each[0] != WEIGHTS]),
    "no archive": lambda m: b"PK" + bytes(1000),
}


@pytest.mark.parametrize("trained", [".keras"], indirect=True)
@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_keras_does_not_write_is_refused(copies, capsys, make):
    directory, older, newer = copies
    with zipfile.ZipFile(newer) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    put(newer, make(members))
    assert_refused(directory, older, newer, capsys, "its state cannot be read: ")


def test_training_skips_a_hostile_file_and_resumes_from_the_checkpoint_before_it(copies):
    directory, older, newer = copies
    content = hdf5_of(newer)
    with h5py.File(content, "r+") as file:
        external_link_among_the_weights(file, str(directory / "elsewhere"))
    put_hdf5(newer, content.getvalue())
    checkpoint = GlobalStepCheckpoint(str(directory / older.name.replace("b5", "b{batch}")), save_freq=5, resume=True)
    with pytest.warns(UserWarning, match=f"Passed over {newer}: its state cannot be read: layers/.* is a link"):
        fit(small_model(), checkpoint)
    assert checkpoint.resumed_from.batch == 5
    assert latest_checkpoint(directory).batch == 10
