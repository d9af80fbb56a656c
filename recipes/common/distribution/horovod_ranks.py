"""The ranks of a run under Horovod, and what they compute together: the only file of the recipes that imports Horovod."""

import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from callbacks import preemption
from callbacks.plain_data import decode, encode, size_of
from callbacks.ranks import Ranks, RanksDiffer

# Horovod has no reduction of these; the wider type holds all their values.
_WIRE_TYPES = {tf.bfloat16: tf.float32, tf.uint32: tf.int64}


class HorovodRanks(Ranks):
    """Joins the run that the environment describes; blocks until all ranks have joined.

    Names begin with those that Horovod itself gives, because `hvd.elastic.run` takes the failure of any other for its own end.
    """

    def __init__(self):
        if tf.config.list_physical_devices("GPU"):  # then cores are free to look for work more often than each ms
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.1")
        hvd.init()
        preemption.training_begins()  # the others would wait for a rank that leaves on its own
        self.rank, self.size = hvd.rank(), hvd.size()
        self._checksums = ThreadPoolExecutor(1, "checksums")
        self._expected: tuple[str, list[str], Future] | None = None
        self._asked_to_leave = 0

    def gather(self, value: Any) -> list[Any]:
        with tf.device("/cpu:0"):
            received = hvd.allgather(_to_tensor(encode(value)), name="HorovodAllgather_gather")  # ranks may send other lengths
        return [decode(message) for message in _split(received.numpy().data, self.size)]

    def broadcast(self, value: Any) -> Any:
        message = encode(value) if self.is_chief else b""
        with tf.device("/cpu:0"):
            size = int(hvd.broadcast(tf.constant(len(message), tf.int64), root_rank=0, name="HorovodBroadcast_size"))
            sent = _to_tensor(message) if self.is_chief else tf.zeros([size], tf.uint8)
            received = hvd.broadcast(sent, root_rank=0, name="HorovodBroadcast_message")
        return decode(received.numpy().data)

    def any(self, flag: bool) -> bool:
        return bool(hvd.allreduce(tf.constant(flag, tf.int32), op=hvd.Max, name="HorovodAllreduce_any"))

    def average(self, tensors: Sequence[tf.Tensor | tf.IndexedSlices | None], name: str) -> list[Any]:
        """The mean of each tensor over all ranks, with equal weights. In a `tf.function` or outside.

        Args:
            tensors: of the same shapes and types on every rank; sparse ones become dense, None stays.
            name: of the reduction, the same on every rank.
        """
        return _reduce(tensors, hvd.Average, name)

    def average_logs(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The mean of each value over all ranks. Whether a rank was asked to leave travels along, in the same message.

        They are gathered, not reduced: with so few numbers Gloo is faster at that.

        Args:
            values: of any shapes, the same on every rank.
        """
        asked = preemption.asked()
        sent = [number for value in values for number in value.ravel().tolist()]
        sent += [code == asked for code in preemption.BY_WEIGHT]
        of_ranks = hvd.allgather(tf.constant([sent], tf.float64), name=f"HorovodAllgather_logs_{len(sent)}")
        rest = iter(of_ranks.numpy().mean(axis=0))
        means = [np.array([next(rest) for _ in range(value.size)]).reshape(value.shape)[()] for value in values]
        self._asked_to_leave = next((code for code, said in zip(preemption.BY_WEIGHT, rest, strict=True) if said), 0)
        return means

    def asked_to_leave(self) -> int:
        return self._asked_to_leave

    def total(self, tensors: Sequence[tf.Tensor], name: str) -> list[Any]:
        """The sum of each tensor over all ranks."""
        return _reduce(tensors, hvd.Sum, name)

    def give_chiefs_values(self, variables: Sequence[keras.Variable]) -> None:
        for i, variable in enumerate(variables):
            sent = tf.cast(variable.value, _wire_type(variable.value))
            variable.assign(tf.cast(hvd.broadcast(sent, root_rank=0, name=f"HorovodBroadcast_chief_{i}"), variable.value.dtype))

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
                f"{when} rank {rank} holds other values than the rest, first in {names[i]}: gradients were not averaged, or not "
                "all ranks run the same code. The checkpoints before that are sound."
            )


def first_difference(sums: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """Where ranks disagree.

    Args:
        sums: a checksum of each variable, for each rank.

    Returns:
        A rank that differs from most of the others (from the chief if there are two sides of equal size), and the first
        variable in which it does; None if all are equal.
    """
    for i, of_variable in enumerate(zip(*sums, strict=True)):
        (most_common, _), *_ = Counter(of_variable).most_common()  # of equal counts the first that was met
        for rank, each in enumerate(of_variable):
            if each != most_common:
                return rank, i
    return None


def _to_tensor(message: bytes) -> tf.Tensor:
    return tf.constant(np.frombuffer(message, np.uint8))


def _split(received: memoryview, count: int) -> list[memoryview]:
    """The messages of so many ranks, which stand one after the other."""
    messages = []
    for _ in range(count):
        size = size_of(received)
        messages.append(received[:size])
        received = received[size:]
    if received:
        raise ValueError(f"The messages of {count} ranks are followed by {len(received)} bytes more.")
    return messages


def _checksum(value: tf.Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(value.numpy()).reshape(-1).view("uint8").data)


def _reduce(tensors: Sequence[Any], op: Any, name: str) -> list[Any]:
    """One grouped reduction for each type, since a group has to be of one type."""
    reduced = list(tensors)
    places: dict[tf.DType, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            places.setdefault(_wire_type(tensor), []).append(i)
    for wire_type, indices in places.items():
        sent = [tf.cast(tf.convert_to_tensor(tensors[i]), wire_type) for i in indices]
        received = hvd.grouped_allreduce(sent, op=op, name=f"HorovodAllreduce_{name}_{wire_type.name}")
        for i, tensor in zip(indices, received, strict=True):
            reduced[i] = tf.cast(tensor, tensors[i].dtype)
    return reduced


def _wire_type(tensor: Any) -> tf.DType:
    return _WIRE_TYPES.get(tensor.dtype, tensor.dtype)
