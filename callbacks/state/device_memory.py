"""Checks whether a GPU has room for a second copy of the values in a snapshot."""

from collections.abc import Callable, Iterable

import tensorflow as tf

from callbacks.model.keras_private import memory_limits


def _peak(device: str) -> int:
    return tf.config.experimental.get_memory_info(device.lstrip("/"))["peak"]


class DeviceMemory:
    """Compares the memory that a snapshot may need on each GPU with the memory that training leaves free.

    The answer is computed at the first save, when the memory peak is that of training alone, and kept.

    Args:
        peak: returns the peak of bytes in use on a device, such as `"/gpu:0"`.
        limits: returns the bytes that TensorFlow may allocate on each GPU.
    """

    def __init__(self, peak: Callable[[str], int] = _peak, limits: Callable[[], dict[str, int]] = memory_limits):
        self._peak, self._limits = peak, limits
        self._full: list[str] | None = None

    def full(self, tensors: Iterable[tf.Tensor]) -> list[str]:
        """Returns the GPUs without room for a second copy of these values, such as `["/gpu:0"]`."""
        if self._full is None:
            self._full = self._find_full(tensors)
        return self._full

    def _find_full(self, tensors: Iterable[tf.Tensor]) -> list[str]:
        needed: dict[str, int] = {}
        for tensor in tensors:
            kind, _, number = tensor.device.rpartition(":")
            if kind.endswith("GPU"):
                device = f"/gpu:{number}"
                needed[device] = needed.get(device, 0) + tensor.shape.num_elements() * tensor.dtype.size
        limits = self._limits() if needed else {}
        return [device for device, size in needed.items() if device in limits and self._peak(device) + size > limits[device]]
