"""`Hdf5File` writes the same file as h5py from the same calls, in pieces in the order of the file, and `check_plain` accepts it."""

import io
import os
import tracemalloc
import zlib

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

from callbacks.disk import hdf5_file
from callbacks.disk.hdf5_file import read_array
from callbacks.disk.hdf5_writer import Hdf5File
from callbacks.disk.plain_hdf5 import check_plain

LARGE = 1 << 16  # bytes from which on an array is written from its own memory
PAGE = 1 << 16  # of the metadata's image in memory
DTYPES = ("float16", "float32", "float64", "int8", "uint16", "int64", "bool", "complex64", ">f4", "<i2", ">u8")


def tree(file):
    """Returns name -> attributes, and for a dataset also type, shape, layout and bytes. "/" is the root."""
    found = {"/": [plain(file.attrs)]}

    def note(name, node):
        found[name] = [plain(node.attrs)]
        if isinstance(node, h5py.Dataset):
            found[name] += [node.dtype, node.id.get_type().equal(h5py.h5t.py_create(node.dtype, logical=True)), node.shape]
            found[name] += [node.chunks, node.maxshape, node[()] if node.dtype.kind == "O" else node[()].tobytes()]

    file.visititems(note)
    return found


def plain(attributes):
    return {name: (type(value), value) for name, value in attributes.items()}


def content_of(ours):
    """Returns the pieces that were written, and all of their bytes."""
    pieces = []
    ours.write(lambda piece: pieces.append(piece))
    return pieces, b"".join(bytes(piece) for piece in pieces)


def by_h5py(groups):
    """Returns the tree of a file written by h5py: path -> (attributes, datasets)."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for path, (attributes, values) in groups.items():
            group = file.create_group(path)
            group.attrs.update(attributes)
            for name, value in values.items():
                made = group.create_dataset(name, data=value)
                if getattr(value, "dtype", None) == ml_dtypes.bfloat16:
                    made.attrs["dtype"] = "bfloat16"
    with h5py.File(memory, "r") as file:
        return tree(file)


def by_us(groups):
    ours = Hdf5File()
    for path, (attributes, values) in groups.items():
        group = ours.group(path, attributes)
        for name, value in values.items():
            ours.put(group, name, value)
    content = content_of(ours)[1]
    check_plain(io.BytesIO(content), len(content))
    with h5py.File(io.BytesIO(content), "r") as file:
        return tree(file)


def assert_as_by_h5py(groups):
    found, expected = by_us(groups), by_h5py(groups)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name


@pytest.mark.parametrize("size", [16, LARGE - 8, LARGE, 5 * LARGE + 24], ids=["small", "just small", "just large", "large"])
def test_an_array_is_stored_as_by_h5py(size):
    groups = {}
    for dtype in DTYPES:
        values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, size // np.dtype(dtype).itemsize).astype(dtype)
        groups[dtype] = ({}, {"flat": values, "matrix": values[: len(values) // 2 * 2].reshape(-1, 2)})
    assert_as_by_h5py(groups)


@pytest.mark.parametrize("size", [3, LARGE])
def test_bfloat16_is_stored_as_by_keras(size):
    """h5py does not know bfloat16: it stores the bytes, and Keras stores the type in an attribute."""
    values = np.linspace(-3, 3, size).astype(ml_dtypes.bfloat16)
    assert_as_by_h5py({"a": ({}, {"bits": values})})
    ours = Hdf5File()
    ours.put(ours.group("vars"), "0", values)
    store = keras.src.saving.saving_lib.H5IOStore(io.BytesIO(content_of(ours)[1]), mode="r")
    read = keras.ops.convert_to_numpy(store.get("")["0"])
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("size", [3, LARGE])
def test_float8_is_stored_as_bytes(dtype, size):
    values = np.linspace(-3, 3, size).astype(dtype)
    ours = Hdf5File()
    ours.put(ours.group("vars"), "0", values)
    with h5py.File(io.BytesIO(content_of(ours)[1])) as file:
        stored = file["vars/0"][()]
    assert stored.dtype.kind == "V" and stored.tobytes() == values.tobytes()


def test_numbers_and_arrays_without_elements_are_stored_as_by_h5py():
    numbers = [3.5, np.float64(1e300), np.int32(-1), True, np.array(2.5, "float16")]
    empty = [np.zeros([0, 3], "float32"), np.zeros([4, 0, LARGE]), np.zeros(0, "bool")]
    assert_as_by_h5py({"a": ({}, {str(i): value for i, value in enumerate([*numbers, *empty])})})


def test_texts_and_bytes_are_stored_as_by_h5py():
    values = {"a": "text", "b": "", "c": b"bytes", "d": np.array([b"a", b"bcd"]), "e": np.void(b"1234")}
    assert_as_by_h5py({"a": ({"name": ""}, values), "b": ({"name": "é" * 9000}, values)})


def test_a_file_is_the_same_if_the_user_has_set_h5py_to_track_the_order_of_creation():
    """Other structures would store the order."""

    def write():
        ours = Hdf5File()
        ours.put(ours.group("layers/dense/vars", {"name": "dense"}), "0", np.ones(3))
        return content_of(ours)[1]

    expected = write()
    h5py.get_config().track_order = True
    try:
        assert write() == expected
    finally:
        h5py.get_config().track_order = False


def test_arrays_that_do_not_lie_in_order_are_stored_as_by_h5py():
    matrix = np.arange(4 * LARGE, dtype="float32").reshape(512, -1)
    values = {"a": matrix.T, "b": matrix[::2], "c": matrix[:, 1:], "d": np.asfortranarray(matrix), "e": matrix[::-1]}
    assert not any(value.flags.c_contiguous or value.nbytes < LARGE for value in values.values() if value is not values["b"])
    assert_as_by_h5py({"a": ({}, values)})


def test_groups_nest_and_carry_attributes_as_with_h5py():
    kernel = np.arange(LARGE, dtype="float32")
    groups = {
        "vars": ({}, {}),
        "layers/dense/vars": ({"name": "dense"}, {"0": kernel, "1": kernel[:3]}),
        "layers/dense_1/vars": ({"name": "dense é"}, {"0": kernel + 1}),
        "layers/block/items/0/inner": ({"name": "a" * 300}, {"value": np.float32(2)}),
        "global_step": ({}, {"header": np.frombuffer(b'{"format": 2}', "uint8")}),
        "global_step/variables": ({}, {str(i): np.full([3], i) for i in range(200)}),
        "optimizer/vars": ({}, {str(i): kernel * i for i in range(20)}),
    }
    assert_as_by_h5py(groups)


def test_metadata_of_many_pages_between_large_arrays_is_stored_as_by_h5py():
    """Thousands of small values fill many pages of the image, and large values cross page boundaries."""
    random, groups = np.random.default_rng(0), {}
    for i in range(20):
        values = {f"small_{j}": random.normal(size=j) for j in range(60)}
        values["large"] = random.integers(0, 256, LARGE + 977 * i).astype("uint8")
        groups[f"group_{i}"] = ({"name": f"group {i}"}, values)
    assert_as_by_h5py(groups)
    ours = Hdf5File()
    for path, (_, values) in groups.items():
        group = ours.group(path)
        for name, value in values.items():
            ours.put(group, name, value)
    of_metadata = [piece for piece in content_of(ours)[0] if len(piece) < LARGE]
    assert sum(map(len, of_metadata)) > 5 * PAGE


def test_a_large_array_is_written_from_its_own_memory_and_a_small_one_is_not():
    large, small = np.arange(LARGE, dtype="float32"), np.arange(8, dtype="float32")
    ours = Hdf5File()
    group = ours.group("vars")
    ours.put(group, "large", large)
    ours.put(group, "small", small)
    pieces, _ = content_of(ours)
    own = [piece for piece in pieces if np.shares_memory(np.frombuffer(piece, "uint8"), large)]
    assert [piece.nbytes for piece in own] == [large.nbytes]
    assert not any(np.shares_memory(np.frombuffer(piece, "uint8"), small) for piece in pieces)


def test_a_large_array_is_taken_as_it_is_when_it_is_written():
    """So the arrays of a snapshot must not change until the file is complete."""
    large = np.zeros(LARGE, "float32")
    ours = Hdf5File()
    ours.put(ours.group("vars"), "0", large)
    large[:] = 7
    with h5py.File(io.BytesIO(content_of(ours)[1]), "r") as file:
        np.testing.assert_array_equal(file["vars/0"], large)


def test_large_values_take_no_memory():
    """Writes 64 arrays of 4 MB that share memory: only a page of metadata for each is allocated."""
    array = np.ones(1 << 20, "float32")
    tracemalloc.start()
    ours = Hdf5File()
    group = ours.group("vars")
    for i in range(64):
        ours.put(group, str(i), array)
    seen = [0, 0]

    def count(piece):
        seen[0] += len(piece)
        seen[1] = zlib.crc32(piece, seen[1])

    ours.write(count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen[0] > 64 * array.nbytes
    assert peak < 3 * array.nbytes


def test_pieces_come_in_the_order_of_the_file_whatever_the_order_of_the_arrays():
    """Each large array is in the stream of pieces at the offset of its dataset."""
    random = np.random.default_rng(0)
    arrays = {
        name: random.integers(0, 256, LARGE + extra).astype("uint8") for name, extra in zip("zamb", (0, 5, 9, 1), strict=True)
    }
    ours = Hdf5File()
    for name, array in arrays.items():
        ours.put(ours.group(f"layers/{name}"), "0", array)
    _, content = content_of(ours)
    with h5py.File(io.BytesIO(content), "r") as file:
        offsets = {name: file[f"layers/{name}/0"].id.get_offset() for name in arrays}
    assert len(set(offsets.values())) == len(arrays)
    for name, array in arrays.items():
        assert content[offsets[name] :][: array.nbytes] == array.tobytes()


def test_an_empty_file_is_one_of_hdf5():
    with h5py.File(io.BytesIO(content_of(Hdf5File())[1]), "r") as file:
        assert list(file) == []


def test_the_same_values_make_the_same_bytes():
    """Two runs with the same state write equal files."""

    def write():
        ours = Hdf5File()
        group = ours.group("vars", {"name": "dense"})
        ours.put(group, "0", np.ones(LARGE, "float32"))
        ours.put(group, "1", np.ones(3))
        return content_of(ours)[1]

    assert write() == write()


def test_one_array_is_read_without_a_look_at_the_rest_of_the_file(tmp_path, monkeypatch):
    preadv, reads = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *arguments: reads.append(arguments) or preadv(*arguments))
    counts = []
    for layers in (1, 300):
        file = Hdf5File()
        for i in range(layers):
            file.put(file.group(f"layers/dense_{i}/vars"), "0", np.ones(3))
        file.put(file.group("global_step"), "header", np.frombuffer(b"{}", "uint8"))
        path = tmp_path / f"{layers}.weights.h5"
        path.write_bytes(content_of(file)[1])
        reads.clear()
        assert read_array(str(path), "", "global_step", "header") == b"{}"
        counts.append(len(reads))
        for missing in (["global_step"], ["global_step", "other"], ["global_step", "header", "0"], ["other", "header"]):
            with pytest.raises(KeyError):
                read_array(str(path), "", *missing)
    assert max(counts) < 5 < path.stat().st_size / hdf5_file._BLOCK


def test_names_beyond_ascii_are_stored_as_names_that_a_resume_reads():
    """Of a user's class, attribute or callback. h5py would choose a later version of the format for them."""
    file = Hdf5File()
    for path in ("größe/vars", "layers/日本/vars"):
        file.put(file.group(path, {"name": "größe"}), "é", np.ones(3))
        file.put(file.group(path), "ü/large", np.ones(LARGE))
    with h5py.File(io.BytesIO(content_of(file)[1]), "r") as read:
        assert list(read["layers"]) == ["日本"]
        assert read["größe/vars"].attrs["name"] == "größe"
        assert read["größe/vars/é"].shape == (3,) and read["layers/日本/vars/ü/large"].shape == (LARGE,)
