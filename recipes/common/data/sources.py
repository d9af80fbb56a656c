"""Random-access data sets: sample i can be read directly."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import tensorflow as tf

from callbacks import InputError

Prepare = Callable[..., tuple[tf.Tensor, ...]]


class BadSample(Exception):
    """A sample cannot be used. The message names its file, its position in the file, and the reason."""


class Source(Protocol):
    """A random-access data set: sample i can be read directly.

    Attributes:
        fetched_together: the number of samples to read in one `fetch`. Calling the function of a dataset takes as long as gathering
            a few hundred small samples.
    """

    @property
    def fetched_together(self) -> int: ...

    def __len__(self) -> int: ...

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Reads samples, in the order of `numbers`. Called while the function of a dataset is traced.

        Args:
            numbers: int64 `[n]`, each in `[0, len)`.

        Returns:
            The parts of the samples, each `[n, ...]`; every dimension except n is static.
        """


def refuse_datasets(source: Source) -> None:
    """Checks that samples can be read by their numbers.

    Raises:
        InputError: if `source` is a `tf.data.Dataset`, which can only be read in order.
    """
    if isinstance(source, (tf.data.Dataset, tf.distribute.DistributedDataset)):
        raise InputError(
            "A tf.data.Dataset cannot start in the middle, nor shuffle in the same order on any number of replicas. Pass "
            "Arrays(x, y), or Arrays(paths, labels) with a prepare function that reads a file, or a class with __len__ and "
            f"fetch(numbers). Received: {type(source).__name__}"
        )


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    For files that do not fit into memory, store their paths, and read them in `prepare`, which runs on all cores:

    ```python
    def read(path, label, seed):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, [224, 224]) / 255.0, label

    training_data(Arrays(np.array(paths), np.array(labels)), ..., prepare=read)
    ```

    Args:
        x: `[samples, ...]`, of the model's input type, or the input of `prepare`.
        y: `[samples]`, int64 class numbers.
    """

    x: np.ndarray
    y: np.ndarray
    fetched_together: ClassVar[int] = 512

    def __len__(self):
        return len(self.x)

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns x `[n, ...]` and y `[n]`."""
        return tuple(tf.gather(part, numbers) for part in self._tensors)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, ...]:
        with tf.init_scope(), tf.device("/cpu:0"):
            return tf.constant(self.x), tf.constant(self.y)
