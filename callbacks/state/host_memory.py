"""Host memory for the values that are being written to a file."""

import mmap
import threading

import numpy as np

_PROVIDED_AT_ONCE = 1 << 22  # bytes


class HostMemory:
    """Memory for the values of a snapshot, kept from one save to the next.

    The first use costs more than the copies, because the system has to allocate every page.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._bytes = np.empty(0, "uint8")
        self._wanted = threading.Event()

    def begin(self, size: int) -> None:
        """Reserves `size` bytes for the next snapshot."""
        self._wanted.clear()
        self._reserve(size)

    def provide(self, size: int = 0) -> None:
        """Touches the pages of `size` bytes, or of all, before they are needed; stops when `want` is called."""
        self._reserve(size)
        for begin in range(0, len(self._bytes), _PROVIDED_AT_ONCE):
            if self._wanted.is_set():
                return
            self._bytes[begin : begin + _PROVIDED_AT_ONCE : mmap.PAGESIZE] = 0

    def want(self) -> None:
        """Announces a snapshot, from any thread: `provide` stops, so that training gets the memory it needs."""
        self._wanted.set()

    def copy(self, source: np.ndarray, begin: int) -> np.ndarray:
        """Copies an array to the offset `begin` and returns the copy."""
        target = self._bytes[begin : begin + source.nbytes]
        np.copyto(target, source.reshape(-1).view("uint8"))
        return target.view(source.dtype).reshape(source.shape)

    def give_back(self, begin: int, end: int) -> None:
        """Returns the whole pages between two offsets to the system."""
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._block is not None and last > first:
            self._block.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _reserve(self, size):
        if size > len(self._bytes):
            self._bytes = np.empty(0, "uint8")  # first drop the old block, so that there are never two
            self._block = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._block.madvise(mmap.MADV_HUGEPAGE)
            self._bytes = np.frombuffer(self._block, "uint8")
