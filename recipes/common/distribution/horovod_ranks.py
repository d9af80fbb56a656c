"""The ranks of a run under Horovod. Only this file imports Horovod."""

import os
from collections.abc import Sequence
from typing import ClassVar

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from callbacks.plain_data import size_of
from recipes.common.distribution.engine_ranks import EngineRanks


class HorovodRanks(EngineRanks):
    """Joins the run that the environment describes. Blocks until all ranks have joined.

    Names of operations begin like Horovod's own names, because `hvd.elastic.run` recognizes failures by these names.
    """

    engine = "Horovod's collectives"
    unsupported: ClassVar = {tf.bfloat16: tf.float32, tf.uint32: tf.int64}

    def __init__(self):
        if tf.config.list_physical_devices("GPU"):  # cores are idle then, and can check for work more often than every ms
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.1")
        hvd.init()
        super().__init__(hvd.rank(), hvd.size())

    def gather_bytes(self, message: bytes) -> list[memoryview]:
        with tf.device("/cpu:0"):
            received = hvd.allgather(_to_tensor(message), name="HorovodAllgather_gather")  # lengths may differ between ranks
        return _split(received.numpy().data, self.size)

    def broadcast_bytes(self, message: bytes) -> memoryview:
        with tf.device("/cpu:0"):
            size = int(hvd.broadcast(tf.constant(len(message), tf.int64), root_rank=0, name="HorovodBroadcast_size"))
            sent = _to_tensor(message) if self.is_chief else tf.zeros([size], tf.uint8)
            return hvd.broadcast(sent, root_rank=0, name="HorovodBroadcast_message").numpy().data

    def gather_numbers(self, numbers: Sequence[float]) -> np.ndarray:
        """Gathers even if a sum would suffice, because Gloo gathers a few numbers faster."""
        return hvd.allgather(tf.constant([numbers], tf.float64), name=f"HorovodAllgather_numbers_{len(numbers)}").numpy()

    def broadcast_tensor(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        sent = tf.cast(tensor, self.wire_type(tensor))
        return tf.cast(hvd.broadcast(sent, root_rank=0, name=f"HorovodBroadcast_{name}"), tensor.dtype)

    def reduce(self, tensors: Sequence[tf.Tensor], name: str, *, average: bool) -> Sequence[tf.Tensor]:
        return hvd.grouped_allreduce(tensors, op=hvd.Average if average else hvd.Sum, name=f"HorovodAllreduce_{name}")


def _to_tensor(message: bytes) -> tf.Tensor:
    return tf.constant(np.frombuffer(message, np.uint8))


def _split(received: memoryview, count: int) -> list[memoryview]:
    """Splits the concatenated messages of all ranks."""
    messages = []
    for _ in range(count):
        size = size_of(received)
        messages.append(received[:size])
        received = received[size:]
    if received:
        raise ValueError(f"{len(received)} bytes follow the messages of {count} ranks.")
    return messages
