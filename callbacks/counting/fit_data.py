"""The training data of a running `fit`."""

import weakref
from collections.abc import Callable
from typing import Any

import keras

from callbacks.model import keras_private


class FitData:
    """The training data of a running `fit`. It lives as long as the `fit`.

    Args:
        epoch_iterator: Keras's iterator over the epochs, the same throughout one `fit`.
        make: makes an iterator of `dataset`. Keras calls it where it would make one itself; each epoch uses one and may drop
            others.
    """

    def __init__(self, epoch_iterator: Any, make: Callable[[], Any]):
        self.dataset = keras_private.dataset_of(epoch_iterator)
        self._epoch_iterator = weakref.ref(epoch_iterator)
        keras_private.replace_dataset(epoch_iterator, _Iterable(self, make))

    @property
    def epoch_iterator(self) -> Any:
        """Keras's iterator over the epochs."""
        return self._epoch_iterator()

    @property
    def length(self) -> int | None:
        """The number of batches in an iterator; None if unknown."""
        return self.epoch_iterator.data_adapter.num_batches

    @property
    def takes_steps(self) -> bool:
        """Whether `fit` has `steps_per_epoch`, so that several epochs may share an iterator."""
        return bool(self.epoch_iterator.steps_per_epoch)

    @property
    def continues(self) -> bool:
        """Whether the next epoch continues the iterator of the last one, as with `steps_per_epoch`."""
        return self.takes_steps and keras_private.has_open_iterator(self.epoch_iterator)

    def count_as_seen(self, batches: int) -> None:
        """Counts batches as drawn from the iterator, whose length Keras may know."""
        keras_private.count_as_seen(self.epoch_iterator, batches)

    @property
    def py_dataset(self) -> keras.utils.PyDataset | None:
        """The `PyDataset` that the data comes from; None if it comes from none."""
        return getattr(self.epoch_iterator.data_adapter, "py_dataset", None)

    @property
    def shuffles_by_python(self) -> bool:
        """Whether Keras shuffles the batches of a `PyDataset` with Python's `random`."""
        return self.py_dataset is not None and bool(self.epoch_iterator.data_adapter.shuffle)


class _Iterable:
    def __init__(self, data: FitData, make: Callable[[], Any]):
        self._data, self._make = data, make

    def __iter__(self):
        return self._make()
