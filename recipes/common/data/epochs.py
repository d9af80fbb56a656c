"""Epochs of data for Keras's `fit`; after a resume, an epoch may begin in the middle."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras.src.trainers.data_adapters.data_adapter import DataAdapter  # `fit` accepts its subclasses; it has no public name

from callbacks import InputError
from callbacks.model.keras_private import have_fit_take
from recipes.common.data.skipped import SkippedBatches


class EpochData(DataAdapter):
    """A dataset with the number of batches in a full epoch.

    If a plain `tf.data.Dataset` started in the middle of an epoch, Keras would regard the rest as a full epoch.

    Args:
        dataset: the rest of the epoch.
        num_batches: batches in a full epoch.
        before_epoch: called before each epoch.
        skipped: the batches that are left out, for the callbacks of `fit`.
    """

    def __init__(
        self,
        dataset: Any,
        num_batches: int,
        before_epoch: Callable[[], None] | None = None,
        skipped: SkippedBatches | None = None,
    ):
        have_fit_take(EpochData)
        self.skipped = skipped
        self._once = _OncePerEpoch(dataset) if isinstance(dataset, tf.distribute.DistributedDataset) else None
        self._dataset = self._once or dataset
        self._num_batches = num_batches
        self._before_epoch = before_epoch

    def get_tf_dataset(self):
        return self._dataset

    def on_epoch_begin(self):
        if self._before_epoch:
            self._before_epoch()
        if self._once:
            self._once.is_due = True

    @property
    def num_batches(self):
        return self._num_batches

    @property
    def batch_size(self):
        return None

    @property
    def has_partial_batch(self):
        return None

    @property
    def partial_batch_size(self):
        return None


class _OncePerEpoch(tf.distribute.DistributedDataset):
    """Creates only one iterator for each epoch.

    At the end of an epoch, Keras creates another iterator, and drops it when the next epoch begins. On several devices, creating
    one takes a fraction of a second and prepares batches that are never read.
    """

    def __init__(self, dataset: tf.distribute.DistributedDataset):
        self._dataset = dataset
        self.is_due = True

    def __iter__(self):
        if not self.is_due:
            return iter(_refuse, None)  # raises an error if Keras reads from it
        self.is_due = False
        return iter(self._dataset)

    @property
    def element_spec(self):
        return self._dataset.element_spec


def _refuse() -> None:
    raise InputError("The data defines the length of an epoch. Do not pass steps_per_epoch or validation_steps to fit.")
