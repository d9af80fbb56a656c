"""Finds a member in a `.keras` archive, and refuses archives that this package does not write."""

import struct
import zipfile
from typing import IO

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # before a member: signature, length of its name, length of its extra field
_SIGNATURE = b"PK\x03\x04"
_IS_ENCRYPTED = 1


def place_of(file: IO[bytes], member: str) -> tuple[int, int]:
    """Returns the offset of a member's content in the file, and its size.

    Args:
        file: the open archive.
        member: the name of the member.

    Raises:
        ValueError: if there is no such member, two members have the same name or overlap, or a member is compressed, encrypted or
            misplaced.
        zipfile.BadZipFile: if the file is not an archive.
    """
    with zipfile.ZipFile(file) as archive:
        found, end = sorted(archive.infolist(), key=lambda each: each.header_offset), archive.start_dir
    ends = [*(each.header_offset for each in found[1:]), end]
    places = {}
    for each, next_begin in zip(found, ends, strict=False):
        if each.filename in places:
            raise ValueError(f"two members are named {each.filename!r:.100}")
        if each.flag_bits & _IS_ENCRYPTED or each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size:
            raise ValueError(f"its member {each.filename!r:.100} is compressed or encrypted")
        file.seek(each.header_offset)
        head = file.read(_LOCAL_HEADER.size)
        signature, *lengths = _LOCAL_HEADER.unpack(head) if len(head) == _LOCAL_HEADER.size else (b"", 0, 0)
        begin = each.header_offset + _LOCAL_HEADER.size + sum(lengths)
        if signature != _SIGNATURE or begin + each.file_size > next_begin:
            raise ValueError(f"its member {each.filename!r:.100} is not where the directory of the archive says")
        places[each.filename] = begin, each.file_size
    if member not in places:
        raise ValueError(f"it has no member {member!r}")
    return places[member]
