"""Memory of the host that holds what is on its way to a file."""

import mmap
import threading

import numpy as np

_PROVIDED_AT_ONCE = 1 << 22  # bytes


class HostMemory:
    """Memory for the values of a snapshot, which is kept from one save to the next.

    Its first use costs more than all copying, since the system has to provide every page of it.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._bytes = np.empty(0, "uint8")
        self._wanted = threading.Event()

    def begin(self, size: int) -> None:
        """Makes room for so many bytes, for another snapshot."""
        self._wanted.clear()
        self._reserve(size)

    def provide(self, size: int = 0) -> None:
        """Has the system provide so many bytes, or all, before they are needed; ends when they are wanted."""
        self._reserve(size)
        for begin in range(0, len(self._bytes), _PROVIDED_AT_ONCE):
            if self._wanted.is_set():
                return
            self._bytes[begin : begin + _PROVIDED_AT_ONCE : mmap.PAGESIZE] = 0

    def want(self) -> None:
        """Says, in any thread, that a snapshot comes: training needs memory for what the snapshot holds, so no more is provided."""
        self._wanted.set()

    def copy(self, source: np.ndarray, begin: int) -> np.ndarray:
        """Copies an array to a place, and returns the copy."""
        target = self._bytes[begin : begin + source.nbytes]
        np.copyto(target, source.reshape(-1).view("uint8"))
        return target.view(source.dtype).reshape(source.shape)

    def give_back(self, begin: int, end: int) -> None:
        """Gives whole pages of a place back to the system."""
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._block is not None and last > first:
            self._block.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _reserve(self, size):
        if size > len(self._bytes):
            self._bytes = np.empty(0, "uint8")  # let go first, so that there are never two
            self._block = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._block.madvise(mmap.MADV_HUGEPAGE)
            self._bytes = np.frombuffer(self._block, "uint8")
