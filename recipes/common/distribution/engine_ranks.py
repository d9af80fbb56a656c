"""The ranks of a run in several processes: the code that all engines share."""

import abc
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from callbacks import preemption
from callbacks.plain_data import decode, encode
from callbacks.ranks import Ranks, RanksDiffer


class EngineRanks(Ranks, abc.ABC):
    """Ranks that exchange messages and tensors through an engine.

    An engine implements the abstract methods. Each method is a collective: all ranks must call it, in the same order.

    Args:
        rank: the rank of this process.
        size: the number of ranks.

    Attributes:
        engine: the name of the engine, for messages.
        unsupported: TensorFlow types that the engine cannot reduce -> a wider type that can represent all their values.
    """

    engine: str
    unsupported: ClassVar[Mapping[tf.DType, tf.DType]]

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        preemption.training_begins()  # from now on, a rank must not exit alone, because the others would wait for it
        self._checksums = ThreadPoolExecutor(1, "checksums")
        self._expected: tuple[str, list[str], Future] | None = None
        self._asked_to_leave = 0

    @abc.abstractmethod
    def gather_bytes(self, message: bytes) -> list[memoryview]:
        """Returns the message of each rank, in the order of ranks. Messages may have different lengths."""

    @abc.abstractmethod
    def broadcast_bytes(self, message: bytes) -> memoryview:
        """Returns the chief's message. Other ranks pass an empty message."""

    @abc.abstractmethod
    def gather_numbers(self, numbers: Sequence[float]) -> np.ndarray:
        """Returns the numbers of each rank, float64 `[size, n]`, in the order of ranks. Every rank passes the same number."""

    @abc.abstractmethod
    def broadcast_tensor(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Returns the chief's tensor. Every rank passes a tensor of the same shape and type."""

    @abc.abstractmethod
    def reduce(self, tensors: Sequence[tf.Tensor], name: str, *, average: bool) -> Sequence[tf.Tensor]:
        """Sums or averages dense tensors of one type over the ranks, inside or outside a `tf.function`.

        Args:
            tensors: the tensors, with the same shapes on every rank.
            name: the name of the reduction, the same on every rank.
            average: whether to return the mean instead of the sum.
        """

    def gather(self, value: Any) -> list[Any]:
        return [decode(message) for message in self.gather_bytes(encode(value))]

    def broadcast(self, value: Any) -> Any:
        return decode(self.broadcast_bytes(encode(value) if self.is_chief else b""))

    def any(self, flag: bool) -> bool:
        return bool(self.gather_numbers([flag]).any())

    def average(self, tensors: Sequence[tf.Tensor | tf.IndexedSlices | None], name: str) -> list[Any]:
        """Returns the mean of each tensor over all ranks, with equal weights, inside or outside a `tf.function`.

        Args:
            tensors: the tensors, with the same shapes and types on every rank; sparse tensors become dense, None stays None.
            name: the name of the reduction, the same on every rank.
        """
        return self._reduce_each_type(tensors, name, average=True)

    def total(self, tensors: Sequence[tf.Tensor], name: str) -> list[Any]:
        """Returns the sum of each tensor over all ranks."""
        return self._reduce_each_type(tensors, name, average=False)

    def average_logs(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the mean of each value over all ranks. The message also carries stop requests of ranks.

        Args:
            values: arrays with the same shapes on every rank.
        """
        asked = preemption.asked()
        sent = [number for value in values for number in value.ravel().tolist()]
        sent += [code == asked for code in preemption.BY_WEIGHT]
        rest = iter(self.gather_numbers(sent).mean(axis=0))
        means = [np.array([next(rest) for _ in range(value.size)]).reshape(value.shape)[()] for value in values]
        self._asked_to_leave = next((code for code, said in zip(preemption.BY_WEIGHT, rest, strict=True) if said), 0)
        return means

    def asked_to_leave(self) -> int:
        return self._asked_to_leave

    def give_chiefs_values(self, variables: Sequence[keras.Variable]) -> None:
        for i, variable in enumerate(variables):
            variable.assign(self.broadcast_tensor(tf.convert_to_tensor(variable.value), f"chief_{i}"))

    def expect_equal(self, values: Mapping[str, tf.Tensor], when: str) -> None:
        self.settle()
        self._expected = when, list(values), self._checksums.submit(lambda: [_checksum(value) for value in values.values()])

    def settle(self) -> None:
        if self._expected is None:
            return
        (when, names, sums), self._expected = self._expected, None
        difference = first_difference(self.gather(sums.result()))
        if difference:
            rank, i = difference
            raise RanksDiffer(
                f"{when}, the values of rank {rank} differ from those of the other ranks, first in {names[i]}: gradients were not "
                "averaged, or the ranks do not run the same code. Earlier checkpoints are intact."
            )

    def wire_type(self, tensor: tf.Tensor) -> tf.DType:
        """Returns the type in which the engine transfers a tensor."""
        return self.unsupported.get(tensor.dtype, tensor.dtype)

    def _reduce_each_type(self, tensors, name, *, average):
        """Reduces tensors in one group for each type, because a group must have one type."""
        reduced = list(tensors)
        places: dict[tf.DType, list[int]] = {}
        for i, tensor in enumerate(tensors):
            if tensor is not None:
                places.setdefault(self.wire_type(tensor), []).append(i)
        for wire_type, indices in places.items():
            sent = [tf.cast(tf.convert_to_tensor(tensors[i]), wire_type) for i in indices]
            received = self.reduce(sent, f"{name}_{wire_type.name}", average=average)
            for i, tensor in zip(indices, received, strict=True):
                reduced[i] = tf.cast(tensor, tensors[i].dtype)
        return reduced


def first_difference(sums: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """Finds a rank that differs from the others.

    Args:
        sums: a checksum of each variable, for each rank.

    Returns:
        A rank that differs from the majority (from the chief if there is no majority), and the first variable in which it differs;
        None if all ranks are equal.
    """
    for i, of_variable in enumerate(zip(*sums, strict=True)):
        (most_common, _), *_ = Counter(of_variable).most_common()  # for equal counts, the first value
        for rank, each in enumerate(of_variable):
            if each != most_common:
                return rank, i
    return None


def _checksum(value: tf.Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(value.numpy()).reshape(-1).view("uint8").data)
