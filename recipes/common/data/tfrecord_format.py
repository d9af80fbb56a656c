"""The format of TFRecord files: the positions of records, and their checksums.

Source: "TFRecords format details", https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import functools
import os
import stat

import numpy as np

from callbacks import InputError

HEADER = np.dtype([("length", "<u8"), ("checksum", "<u4")])  # before each record's data; 4 bytes of checksum follow the data
FRAME = HEADER.itemsize + 4  # bytes of a record in addition to its data


class OpenFile:
    """A file that is open for reading until its last reference is gone.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if "descriptor" in vars(self):
            os.close(self.descriptor)


def check_regular(path: str) -> os.stat_result:
    """Refuses anything but a regular file, because reading a FIFO would block forever.

    Raises:
        InputError: if the path is not a regular file, or does not exist.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file. A data set must consist of regular files.")
    return found


def record_lengths(path: str) -> np.ndarray:
    """Returns the size of each record in bytes, int64 `[records]`. Reads only the headers.

    Raises:
        InputError: if the file is empty, corrupt, truncated, or not a TFRecord file.
    """
    headers, end, size = _read_headers(path)
    wrong = masked_checksums(headers["length"].copy().view(np.uint8).reshape(-1, 8)) != headers["checksum"]
    if wrong.any():
        first = int(np.argmax(wrong))
        what = "is corrupt from" if first else "is not a TFRecord file, or is corrupt from"
        raise InputError(f"{path} {what} record {first} on (counted from 0): the checksum of its length is wrong.")
    lengths = headers["length"].astype(np.int64)
    if end != size:
        cut_off = len(lengths) - (end > size)
        raise InputError(f"{path} is truncated in record {cut_off} (counted from 0): it ends at byte {size}. Copy it again.")
    if not len(lengths):
        raise InputError(f"{path} is empty. Every file of a data set must contain records.")
    return lengths


def _read_headers(path: str) -> tuple[np.ndarray, int, int]:
    """Returns the complete headers, HEADER `[records]`, the end of the last record according to its header, and the file's size."""
    headers, offset = bytearray(), 0
    try:
        file = OpenFile(path)
        size = os.fstat(file.descriptor).st_size
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # prevents read-ahead of data
        while offset < size:
            header = os.pread(file.descriptor, HEADER.itemsize, offset)
            if len(header) < HEADER.itemsize:
                break
            headers += header
            offset += int.from_bytes(header[:8], "little") + FRAME
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return np.frombuffer(bytes(headers), HEADER), offset, size


def masked_checksums(data: np.ndarray) -> np.ndarray:
    """Computes the checksum that TFRecord files store for a length or for data: CRC-32C, rotated.

    Args:
        data: uint8 `[n, bytes]`.

    Returns:
        uint32 `[n]`.
    """
    table, crc = _checksum_table(), np.full(len(data), 0xFFFFFFFF, np.uint32)
    for column in data.T:
        crc = table[(crc ^ column) & 0xFF] ^ crc >> 8
    crc = ~crc
    return (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)


@functools.cache
def _checksum_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table
