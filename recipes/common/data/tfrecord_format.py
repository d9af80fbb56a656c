"""The format of TFRecord files: the positions of records, and their checksums.

Source: "TFRecords format details", https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import functools
import os
import stat

import numpy as np

from callbacks import InputError

HEADER = np.dtype([("length", "<u8"), ("checksum", "<u4")])  # before each record's data; 4 bytes of checksum follow the data
FRAME = HEADER.itemsize + 4  # bytes of a record beside its data


class OpenFile:
    """A file open for reading, closed with its last reference.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if "descriptor" in vars(self):
            os.close(self.descriptor)


def check_regular(path: str) -> os.stat_result:
    """Refuses anything but a regular file: reading a FIFO would wait forever.

    Raises:
        InputError: if the path is not a regular file, or does not exist.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file. A data set is read from regular files.")
    return found


def record_lengths(path: str) -> np.ndarray:
    """Returns the bytes of each record, int64 `[records]`, and reads only the headers.

    Raises:
        InputError: if the file is empty, damaged, cut off, or no TFRecord file.
    """
    headers, size = _read_headers(path)
    wrong = masked_checksums(headers["length"].copy().view(np.uint8).reshape(-1, 8)) != headers["checksum"]
    if wrong.any():
        first = int(np.argmax(wrong))
        what = "is damaged from" if first else "is no TFRecord file, or damaged from"
        raise InputError(f"{path} {what} record {first} (the first is 0) on: the checksum of its length is wrong.")
    lengths = headers["length"].astype(np.int64)
    end = int(lengths.sum()) + FRAME * len(lengths)
    if end != size:
        cut_off = len(lengths) - (end > size)
        raise InputError(f"{path} is cut off in record {cut_off} (the first is 0): it ends at byte {size}. Copy it again.")
    if not len(lengths):
        raise InputError(f"{path} is empty. A data set has records in each of its files.")
    return lengths


def _read_headers(path: str) -> tuple[np.ndarray, int]:
    """Returns the complete headers, HEADER `[records]`, and the file's size."""
    headers, offset = bytearray(), 0
    try:
        file = OpenFile(path)
        size = os.fstat(file.descriptor).st_size
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # otherwise the system reads ahead into the data
        while offset < size:
            header = os.pread(file.descriptor, HEADER.itemsize, offset)
            if len(header) < HEADER.itemsize:
                break
            headers += header
            offset += int.from_bytes(header[:8], "little") + FRAME
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return np.frombuffer(bytes(headers), HEADER), size


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
