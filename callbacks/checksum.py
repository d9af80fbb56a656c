"""The checksum of a checkpoint: XXH3-128 over every byte.

It finds damage: a disk's flipped bit, a truncated copy. It is no signature, since whoever changes a file can compute it again.
XXH3 takes a tenth of the time of SHA-256 (`xxhash` is the reference implementation, https://xxhash.com).
"""

import os

import xxhash

SIZE = 16  # bytes of a digest
_PIECE = 1 << 19  # bytes read at once: they stay in a core's cache until they are in the checksum

Checksum = xxhash.xxh3_128


def update_from_file(checksum: Checksum, descriptor: int, begin: int, end: int) -> int:
    """Reads a part of a file into a checksum.

    Args:
        checksum: of what comes before the part.
        descriptor: of the open file.
        begin: where the part begins, in bytes.
        end: where it ends.

    Returns:
        How many bytes there were: fewer than asked for if the file ends before.

    Raises:
        OSError: if it cannot be read.
    """
    piece, position = memoryview(bytearray(_PIECE)), begin
    while position < end and (count := os.preadv(descriptor, [piece[: min(_PIECE, end - position)]], position)):
        checksum.update(piece[:count])
        position += count
    return position - begin
