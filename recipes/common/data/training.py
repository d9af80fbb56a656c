"""Training data: shuffled global batches, seekable, split evenly among the replicas."""

import functools
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from callbacks import InputError, counters_of
from recipes.common.data.epochs import EpochData
from recipes.common.data.pipeline import CORES, map_in_order, prefetch, seeded
from recipes.common.data.shuffle import shuffle_index
from recipes.common.data.skipped import SkippedBatches
from recipes.common.data.sources import Prepare, Source, refuse_datasets
from recipes.common.distribution import Distribution


def batches_per_epoch(source: Source, global_batch_size: int, epochs_per_pass: int = 1) -> int:
    """Returns the number of full global batches in an epoch.

    Raises:
        InputError: if there are too few samples for one batch.
    """
    batches = len(source) // (global_batch_size * epochs_per_pass)
    if not batches:
        part = "" if epochs_per_pass == 1 else f", and is 1/{epochs_per_pass} of a pass over the data"
        raise InputError(
            f"An epoch needs at least one global batch, of {global_batch_size}{part}. Received: {len(source)} samples."
        )
    return batches


def training_data(
    source: Source,
    model: keras.Model,
    distribution: Distribution,
    *,
    global_batch_size: int,
    seed: int,
    prepare: Prepare | None = None,
    epochs_per_pass: int = 1,
) -> EpochData:
    """Returns shuffled global batches. An epoch begins at the position of the model's counters, and drops its last partial batch.

    Args:
        source: the samples.
        model: the model to train; after a resume, its counters contain the position in the epoch.
        distribution: the replicas; each gets `global_batch_size / replicas` samples of a batch, in order.
        global_batch_size: samples in one update.
        seed: the seed of the shuffle.
        prepare: called with the parts of one sample and `seed`, int64 `[2]`, a pure function of (seed, epoch, sample) for
            TensorFlow's stateless random operations; returns the model's input. Runs on all cores.
        epochs_per_pass: the number of epochs, of equal length, that make one pass over the data. Above 1 for large data, where
            one validation per pass is too rare; the seed of `prepare` then depends on the pass, not on the epoch.

    Returns:
        For `fit(x=...)`: batches of the parts, each `[share, ...]` on each replica. Its `skipped` belongs to the callbacks of
        `fit`.

    Raises:
        InputError: if there are too few samples for one batch, or `source` is a `tf.data.Dataset`; in `fit`, if it lacks the
            callbacks of the distribution.
    """
    refuse_datasets(source)
    batches, share = batches_per_epoch(source, global_batch_size, epochs_per_pass), global_batch_size // distribution.replicas
    position = _Position(model, global_batch_size, batches, skipped := SkippedBatches(batches))
    order = _Order(len(source), batches, epochs_per_pass, global_batch_size, share, seed)

    def shares(first, count):
        choose = functools.partial(order.samples, first=first, count=count)

        def fetch(place, shares):
            _, chosen = choose(place, shares)
            return tuple(tf.reshape(part, [-1, share, *part.shape[1:]]) for part in source.fetch(chosen))

        def fetch_with_key(place, shares):
            number_of_pass, chosen = choose(place, shares)
            return tf.repeat(number_of_pass, tf.size(chosen)), chosen, *source.fetch(chosen)

        places = position.places(count, at_once=max(1, source.fetched_together // share))
        if prepare is None:
            return prefetch(map_in_order(places, fetch).unbatch())
        samples = map_in_order(places, fetch_with_key).unbatch()
        return prefetch(map_in_order(samples, seeded(prepare, seed), CORES).batch(share, drop_remainder=True))

    def before_epoch():
        distribution.check_callbacks(model)
        position.seek()

    return EpochData(distribution.dataset(shares), batches, before_epoch, skipped)


@dataclass(frozen=True)
class _Order:
    """Assigns samples to the shares of a run. A place is the number of a share, counted over all batches and epochs."""

    size: int
    batches: int  # of an epoch
    epochs_per_pass: int
    global_batch_size: int
    share: int
    seed: int

    def samples(self, place: tf.Tensor, shares: tf.Tensor, *, first: int, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the samples of some shares, beginning at a place, within one epoch.

        Args:
            place: int64 scalar; replicas `first` to `first + count - 1` have `count` places in each batch.
            shares: how many, int64 scalar.

        Returns:
            The number of the pass over the data, and the samples' numbers, int64 `[shares * share]`.
        """
        of_pass = self.batches * count * self.epochs_per_pass
        number_of_pass, in_pass = place // of_pass, place % of_pass
        places = tf.range(in_pass, in_pass + shares)
        begins = places // count * self.global_batch_size + (first + places % count) * self.share
        index = tf.reshape(begins[:, tf.newaxis] + tf.range(self.share, dtype=tf.int64), [-1])
        return number_of_pass, shuffle_index(index, seed=self.seed, epoch=number_of_pass, size=self.size)


class _Position:
    """The positions of the next epoch's batches in the data order.

    Args:
        model: its counters give the position.
        global_batch_size: samples per batch.
        batches: batches per epoch.
        skipped: the batches that are left out.
    """

    def __init__(self, model: keras.Model, global_batch_size: int, batches: int, skipped: SkippedBatches):
        self._model, self._global_batch_size, self._batches, self._skipped = model, global_batch_size, batches, skipped
        self._runs = np.empty([0, 2], "int64")

    def seek(self) -> None:
        """Moves to the position of the model's counters.

        Raises:
            InputError: if the position is between two global batches.
        """
        epoch, samples_done = counters_of(self._model).position()
        if samples_done % self._global_batch_size:
            raise InputError(
                f"The checkpoint is at sample {samples_done} of its epoch, between two global batches of "
                f"{self._global_batch_size}. Resume with the --global-batch-size with which it was saved."
            )
        begin = epoch * self._batches + samples_done // self._global_batch_size
        self._skipped.begin(begin)
        self._runs = np.array(self._skipped.runs(begin, (epoch + 1) * self._batches), "int64").reshape(-1, 2)

    def places(self, count: int, at_once: int) -> tf.data.Dataset:
        """Returns the first of up to `at_once` places and how many, up to the end of the epoch, with `count` places per batch."""

        def rest_of_epoch(zero):
            # Read when an iterator is created, so one dataset serves every epoch. Not a variable: op determinism removes
            # parallel calls and prefetching from a stateful dataset.
            runs = tf.numpy_function(lambda _: self._runs, [zero], tf.int64, stateful=False)
            return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(runs, [None, 2]) * count)

        def parts(run):
            return tf.data.Dataset.range(run[0], run[1], at_once).map(lambda place: (place, tf.minimum(run[1] - place, at_once)))

        return tf.data.Dataset.range(1).flat_map(rest_of_epoch).flat_map(parts)
