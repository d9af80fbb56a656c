"""The room under a quota is what the kernel then lets this user write."""

import ctypes
import errno
import math
import os
import subprocess

import pytest
from processes import PROGRAMS
from shims import compiler

from callbacks.disk.template import Template
from callbacks.saving import disk_room, quota
from callbacks.saving.disk_room import DiskRoom

KIB = 1024
USER, GROUP = 65534, 65533
_SET, _OF_BLOCKS = 0x800008 << 8, 1  # Q_SETQUOTA, QIF_BLIMITS


@pytest.fixture
def disk(tmp_path):
    """An ext4 file system with quotas of users and groups, in a file."""
    image, directory = tmp_path / "image", tmp_path / "disk"
    directory.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "quota", image], check=True)
        subprocess.run(["mount", "-o", "loop,usrquota,grpquota", image, directory], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system with quotas can be mounted here: {error}")
    directory.chmod(0o777)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def allow(directory, kind, owner, most):
    """Sets a quota, in KiB."""
    wanted = quota.Quota(most=most, valid=_OF_BLOCKS)
    descriptor = os.open(directory, os.O_RDONLY)
    call = (ctypes.c_long(443), ctypes.c_int(descriptor), ctypes.c_uint(_SET | kind), ctypes.c_uint(owner))
    assert ctypes.CDLL(None).syscall(*call, ctypes.byref(wanted)) == 0
    os.close(descriptor)


@pytest.mark.parametrize(("kind", "owner"), [(0, USER), (1, GROUP)], ids=["of the user", "of the group"])
def test_the_room_under_a_quota_is_what_can_be_written(disk, kind, owner):
    allow(disk, kind, owner, 600)
    os.setegid(GROUP)
    os.seteuid(USER)
    try:
        (disk / "used").write_bytes(bytes(200 * KIB))
        left, written = quota.bytes_left(str(disk)), 0
        with open(disk / "filled", "wb", buffering=0) as file, pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            while True:
                written += file.write(bytes(4 * KIB))
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert written <= left <= written + 64 * KIB


def test_the_call_and_its_structure_are_those_of_the_kernel(tmp_path):
    if not compiler():
        pytest.skip("there is no C compiler")
    subprocess.run([compiler(), "-o", tmp_path / "layout", PROGRAMS / "quota_layout.c"], check=True)
    found = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split()
    of = quota.Quota
    assert list(map(int, found)) == [
        quota._CALL,
        quota._GET | quota._OF_USER,
        quota._GET | quota._OF_GROUP,
        quota._BLOCK,
        *(each.offset for each in (of.most, of.most_for_long, of.used, of.valid)),
        ctypes.sizeof(of),
    ]


class Kernel:
    """Answers quotactl_fd with these quotas: (kind, owner) -> most, most for long, used."""

    def __init__(self, quotas):
        self._quotas = quotas

    def syscall(self, call, descriptor, command, owner, quota):
        found = self._quotas.get((command.value & 0xFF, owner.value))
        if found is None:
            return -1
        quota._obj.most, quota._obj.most_for_long, quota._obj.used = found
        return 0


@pytest.mark.parametrize(
    ("user", "group", "left"),
    [
        (None, None, math.inf),
        ((0, 0, 5000), None, math.inf),  # the use is recorded, and not limited
        ((600, 0, 200 * KIB), None, 400 * KIB),
        ((600, 500, 200 * KIB), None, 400 * KIB),
        ((0, 500, 200 * KIB), None, 300 * KIB),
        ((600, 0, 700 * KIB), None, 0),
        ((600, 0, 200 * KIB), (300, 0, 100 * KIB), 200 * KIB),
    ],
)
def test_the_smaller_room_of_the_quotas_of_user_and_group_counts(tmp_path, monkeypatch, user, group, left):
    quotas = {(0, os.geteuid()): user, (1, os.getegid()): group}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Kernel(quotas))
    assert quota.bytes_left(str(tmp_path)) == left


def test_without_a_quota_the_room_is_not_limited(tmp_path):
    assert quota.bytes_left(str(tmp_path)) == math.inf


def test_too_little_room_under_the_quota_is_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(quota, "bytes_left", lambda directory: 5e6)
    monkeypatch.setattr(disk_room, "_free", lambda directory: 1e12)
    room = DiskRoom(Template(f"{tmp_path}/b{{batch}}.weights.h5"), {"keep_last": 3}, saves=20, batches=1000)
    with pytest.warns(
        UserWarning, match=rf"^The quota of {tmp_path} has 5 MB free, but the checkpoints of this run need 8 MB more"
    ):
        room.warn(2_000_000)


def test_a_disk_that_does_not_answer_is_left_to_the_save(tmp_path, monkeypatch, recwarn):
    def fail(directory):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(disk_room, "_free", fail)
    DiskRoom(Template(f"{tmp_path}/b{{batch}}.weights.h5"), {"keep_last": 3}, saves=20, batches=1000).warn(2_000_000)
    assert not recwarn.list
