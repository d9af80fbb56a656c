"""HDF5 files with structures that the HDF5 library follows until it crashes, hangs or runs out of memory: each is quickly refused.

All of them verify. Each was seen to end the process, to take minutes, or to take gigabytes, when the library opened it.
"""

import io
import struct

import h5py
import pytest
from hostile import assert_refused, hdf5_of, put_hdf5

pytestmark = pytest.mark.timeout(300)

ROOT_OBJECT, ROOT_TREE, ROOT_HEAP = 64, 80, 88  # offsets of addresses in the superblock
NODES = 24  # bytes of a B-tree node before its keys
CONTINUATION = 0x10


def word(raw, at):
    return struct.unpack_from("<Q", raw, at)[0]


def patched(raw, at, form, *values):
    content = bytearray(raw)
    struct.pack_into(form, content, at, *values)
    return bytes(content)


def edited(raw, edit, **options):
    content = io.BytesIO(raw)
    with h5py.File(content, "r+", **options) as file:
        edit(file)
    return content.getvalue()


def node_that_is_its_own_child(raw):
    tree = word(raw, ROOT_TREE)
    return patched(patched(raw, tree + 5, "<B", 1), tree + NODES + 8, "<Q", tree)


def node_that_follows_itself(raw):
    tree = word(raw, ROOT_TREE)
    return patched(raw, tree + 16, "<Q", tree)


def free_blocks_in_a_loop(raw):
    heap = word(raw, ROOT_HEAP)
    free, names = word(raw, heap + 16), word(raw, heap + 24)
    return patched(raw, names + free, "<QQ", free, 16)


def names_without_end(raw):
    heap = word(raw, ROOT_HEAP)
    size, names = word(raw, heap + 8), word(raw, heap + 24)
    return patched(patched(raw, heap + 16, "<Q", 1), names + 8, f"<{size - 8}s", b"x" * (size - 8))


def object_that_continues_in_itself(raw):
    message = struct.pack("<HH4x", CONTINUATION, 16)
    at = raw.index(message) + len(message)
    begin, size = struct.unpack_from("<QQ", raw, at)
    return patched(raw, begin, "<8sQQ", message, begin, size)


def root_in_a_group(raw):
    """HDF5 files count the names of a group; this one claims that it has one."""
    group = struct.pack("<Q", word(raw, ROOT_TREE))
    return patched(raw, raw.index(b"SNOD") + 16, "<QII8sQ", word(raw, ROOT_OBJECT), 1, 0, group, word(raw, ROOT_HEAP))


def text_larger_than_its_heap(raw):
    return patched(raw, raw.index(b"GCOL") + 24, "<Q", (1 << 64) - 8)


def heap_of_texts_without_size(raw):
    return patched(raw, raw.index(b"GCOL") + 8, "<Q", 0)


def many_nested_groups(raw):
    return edited(raw, lambda file: file.create_group("/".join(["a"] * 5000)))


def many_long_paths(raw):
    def edit(file):
        deepest = file.create_group("/".join(["n" * 60_000] * 100))
        for i in range(100):
            deepest.create_group(str(i))

    return edited(raw, edit)


def later_version_of_hdf5(raw):
    content = io.BytesIO()
    with h5py.File(io.BytesIO(raw)) as old, h5py.File(content, "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
    return content.getvalue()


WHY = {
    node_that_is_its_own_child: "the root shares bytes of the file",
    node_that_follows_itself: "the root has no usable B-tree",
    free_blocks_in_a_loop: "the root has no usable heap",
    names_without_end: "the root has names that",
    object_that_continues_in_itself: "shares bytes of the file",
    root_in_a_group: "global_step shares bytes of the file",
    text_larger_than_its_heap: "has no usable global heap",
    heap_of_texts_without_size: "has no usable global heap",
    many_nested_groups: "is nested too deeply",
    many_long_paths: "is nested too deeply",
    later_version_of_hdf5: "not of the version of HDF5 that checkpoints have",
}


@pytest.mark.parametrize("trained", [".weights.h5"], indirect=True)
@pytest.mark.parametrize("make", WHY)
def test_a_structure_that_would_crash_or_stop_the_hdf5_library_is_refused(copies, capsys, make):
    directory, older, newer = copies
    put_hdf5(newer, make(hdf5_of(newer).getvalue()))
    assert_refused(directory, older, newer, capsys, WHY[make])
