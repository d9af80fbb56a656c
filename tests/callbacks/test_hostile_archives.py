"""Malicious `.keras` archives, which verify: each is quickly named in one line."""

import struct
import zipfile

import pytest
from hostile import archive_of, assert_refused, put


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
