"""Where a member of a `.keras` archive is, if the archive is as this package writes it."""

import os
import struct
import zipfile
from typing import BinaryIO

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # before a member: a signature, the lengths of its name and of its extra field
_SIGNATURE = b"PK\x03\x04"
_IS_ENCRYPTED = 1


def place_of(file: BinaryIO, member: str) -> tuple[int, int]:
    """Returns where the content of a member begins in the file, and its size.

    Args:
        file: the open archive.
        member: the name.

    Raises:
        ValueError: if two members have one name or lie over each other, or one is packed, encrypted, or not where it is said to be.
        KeyError: if there is no such member.
        zipfile.BadZipFile: if it is no archive.
    """
    with zipfile.ZipFile(file) as archive:
        found, end = sorted(archive.infolist(), key=lambda each: each.header_offset), archive.start_dir
    ends = [*(each.header_offset for each in found[1:]), end]
    places = {}
    for each, next_begin in zip(found, ends, strict=False):
        if each.filename in places:
            raise ValueError(f"two members are named {each.filename!r:.100}")
        if each.flag_bits & _IS_ENCRYPTED or each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size:
            raise ValueError(f"its member {each.filename!r:.100} is packed or encrypted")
        head = os.pread(file.fileno(), _LOCAL_HEADER.size, each.header_offset)
        signature, *lengths = _LOCAL_HEADER.unpack(head) if len(head) == _LOCAL_HEADER.size else (b"", 0, 0)
        begin = each.header_offset + _LOCAL_HEADER.size + sum(lengths)
        if signature != _SIGNATURE or begin + each.file_size > next_begin:
            raise ValueError(f"its member {each.filename!r:.100} is not where it is said to be")
        places[each.filename] = begin, each.file_size
    return places[member]
