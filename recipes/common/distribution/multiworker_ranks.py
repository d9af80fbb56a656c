"""The ranks of a run under TensorFlow's own collectives, which need only TensorFlow.

`MultiWorkerMirroredStrategy` connects the processes: it starts TensorFlow's server and its coordination service, which notices that
a rank has died, and it selects NCCL for GPUs. The model is not created under the strategy, because Keras 3 cannot train there
(keras-team/keras#20585). Instead, each rank trains one replica, as under Horovod, and reduces gradients with the collective
operations that the strategy itself uses.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow as tf

from recipes.common.distribution.engine_ranks import EngineRanks

_GROUP_OF_DEVICES, _GROUP_OF_HOSTS = 9001, 9002  # the strategy numbers its own groups from 1
_PACK_BYTES = 128 << 20  # size limit of tensors that are sent together
_PIECE = 32 << 20  # int32 words of a broadcast that are sent at once


class MultiWorkerRanks(EngineRanks):
    """Joins the run that `TF_CONFIG` describes. Blocks until all ranks have joined.

    Create it after the devices are chosen, and before the first tensor.

    Attributes:
        strategy: the strategy that connects the processes.
    """

    engine = "TensorFlow's collectives"
    unsupported: ClassVar = dict.fromkeys((tf.bool, tf.int8, tf.int16, tf.uint8, tf.uint16), tf.int32) | {tf.uint32: tf.int64}

    def __init__(self):
        cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster)
        super().__init__(cluster.task_id or 0, self.strategy.num_replicas_in_sync)
        self._devices = _Group(_GROUP_OF_DEVICES, self.size, "/gpu:0" if tf.config.get_visible_devices("GPU") else "/cpu:0")
        self._hosts = _Group(_GROUP_OF_HOSTS, self.size, "/cpu:0")

    def gather_bytes(self, message: bytes) -> list[memoryview]:
        sizes = self._gather_rows(np.array([len(message)]))[:, 0]
        words = _to_words(message, int(sizes.max()))
        return [row.data.cast("B")[:size] for row, size in zip(self._gather_rows(words), sizes, strict=True)]

    def broadcast_bytes(self, message: bytes) -> memoryview:
        size = int(self._hosts.reduce(tf.constant(len(message), tf.int64), "size"))
        return self._broadcast_words(_to_words(message, size)).data.cast("B")[:size]

    def gather_numbers(self, numbers: Sequence[float]) -> np.ndarray:
        return self._gather_rows(np.array(numbers, "float64"))

    def broadcast_tensor(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        array = tensor.numpy()
        received = self._broadcast_words(_to_words(array.tobytes(), array.nbytes))
        return tf.constant(received.view("uint8")[: array.nbytes].view(array.dtype).reshape(array.shape))

    def reduce(self, tensors: Sequence[tf.Tensor], name: str, *, average: bool) -> Sequence[tf.Tensor]:
        # TensorFlow keeps integers on the host, also with GPUs.
        group = self._devices if tensors[0].dtype.is_floating else self._hosts
        reduced: list[tf.Tensor] = []
        with tf.name_scope(f"reduce_{name}"):
            for i, pack in enumerate(_packs(tensors)):
                sizes = [tf.size(tensor) for tensor in pack]
                flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in pack], 0)
                flat = group.reduce(flat, f"{name}_{i}", average=average)
                reduced += [tf.reshape(part, tf.shape(sent)) for part, sent in zip(tf.split(flat, sizes), pack, strict=True)]
        return reduced

    def _gather_rows(self, row: np.ndarray) -> np.ndarray:
        """Gathers `[n]` of each rank as `[size, n]`, in the order of ranks; TensorFlow sorts ranks by name."""
        gathered = self._hosts.gather(tf.constant(np.concatenate([np.array([self.rank], row.dtype), row])[np.newaxis])).numpy()
        return np.ascontiguousarray(gathered[gathered[:, 0].argsort(), 1:])

    def _broadcast_words(self, words: np.ndarray) -> np.ndarray:
        """Broadcasts the chief's words as a sum, to which other ranks add zeros."""
        sent = words if self.is_chief else np.zeros_like(words)
        pieces = [self._hosts.reduce(tf.constant(sent[i : i + _PIECE]), "words").numpy() for i in range(0, len(sent), _PIECE)]
        return np.concatenate([*pieces, sent[:0]])


class _Group:
    """A group with one device of each rank.

    Args:
        key: the number of the group, the same on every rank.
        size: the number of ranks.
        device: the device of this rank.
    """

    def __init__(self, key: int, size: int, device: str):
        self._device = device
        with tf.device(device):
            self._order = tf.Variable(0.0, trainable=False)  # TensorFlow runs operations on the same resource in sequence
        self._options = {
            "group_size": size,
            "group_key": key,
            "ordering_token": [self._order.handle],
            "communication_hint": "auto",
            "timeout_seconds": 0,
        }

    def reduce(self, tensor: tf.Tensor, name: str, *, average: bool = False) -> tf.Tensor:
        """Returns the sum or the mean over the group."""
        final = "Div" if average else "Id"
        number = _number(name, final, tensor)
        with tf.device(self._device):
            return tf.raw_ops.CollectiveReduceV2(input=tensor, instance_key=number, merge_op="Add", final_op=final, **self._options)

    def gather(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the tensors of the group, `[1, ...]` of each, as `[size, ...]`."""
        number = _number("gather", "", tensor)
        with tf.device(self._device):
            return tf.raw_ops.CollectiveGatherV2(input=tensor, instance_key=number, **self._options)


def _number(name: str, operation: str, tensor: tf.Tensor) -> int:
    """Returns the number that identifies an operation on all ranks.

    TensorFlow stores each number and its shape forever, so the same operation always gets the same number. The strategy, which
    counts operations, leaks 0.8 kB with each operation.
    """
    return zlib.crc32(f"{name} {operation} {tensor.dtype.name} {tensor.shape}".encode()) >> 1


def _to_words(message: bytes, size: int) -> np.ndarray:
    """Returns a message as int32, which every collective supports, padded to a multiple of 1 KiB, so that there are few shapes."""
    return np.frombuffer(message.ljust(-(-max(size, 1) // 1024) * 1024, b"\0"), "int32")


def _packs(tensors: Sequence[tf.Tensor]) -> Iterator[list[tf.Tensor]]:
    """Groups tensors of one type, so that one message carries many small tensors."""
    pack: list[tf.Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = (tensor.shape.num_elements() or 0) * tensor.dtype.size
        if pack and size + nbytes > _PACK_BYTES:
            yield pack
            pack, size = [], 0
        pack.append(tensor)
        size += nbytes
    if pack:
        yield pack
