"""From samples with random access to what `fit` reads: global batches in a seekable order, shared evenly by the replicas."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters.data_adapter import DataAdapter  # `fit` takes its subclasses; it has no public name

from callbacks import InputError, counters_of
from recipes.common.distribution import Distribution
from recipes.common.order import shuffled

_CORES = len(os.sched_getaffinity(0))
Prepare = Callable[..., tuple[tf.Tensor, ...]]


class BadSample(Exception):
    """A sample cannot be used. Says which, by its file and its place in it, and why."""


class Source(Protocol):
    """A data set of which any sample can be had at once, by its number.

    Attributes:
        fetched_together: how many samples one `fetch` should be asked for: a call of a dataset's function costs as much as
            gathering a few hundred small samples.
    """

    @property
    def fetched_together(self) -> int: ...

    def __len__(self) -> int: ...

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Some samples, in the order asked for. Called while a dataset's function is traced.

        Args:
            numbers: int64 `[n]`, each in `[0, len)`.

        Returns:
            The parts of the samples, each `[n, ...]`, of known shapes but for n.
        """


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    Args:
        x: `[samples, ...]`, of the model's input type.
        y: `[samples]`, int64 class numbers.
    """

    x: np.ndarray
    y: np.ndarray
    fetched_together: ClassVar[int] = 512

    def __len__(self):
        return len(self.x)

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """x `[n, ...]` and y `[n]`."""
        return tuple(tf.gather(part, numbers) for part in self._tensors)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, ...]:
        with tf.init_scope(), tf.device("/cpu:0"):
            return tf.constant(self.x), tf.constant(self.y)


class EpochData(DataAdapter):
    """What `fit` asks for an epoch of batches: a dataset, and how many batches it is meant to have.

    A plain `tf.data.Dataset` that starts in the middle of an epoch would make Keras take the short epoch for the length of all.
    """

    def __init__(self, dataset: Any, num_batches: int, before_epoch: Callable[[], None] | None = None):
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
    """Makes one iterator for each epoch.

    At the end of an epoch Keras asks for another one, and drops it when the next epoch begins. Over several devices each takes a
    fraction of a second to make, and prepares batches that nobody reads.
    """

    def __init__(self, dataset: tf.distribute.DistributedDataset):
        self._dataset = dataset
        self.is_due = True

    def __iter__(self):
        if not self.is_due:
            return iter(_refuse, None)  # raises when it is read
        self.is_due = False
        return iter(self._dataset)

    @property
    def element_spec(self):
        return self._dataset.element_spec


def _refuse() -> None:
    raise InputError("The length of an epoch is that of its data. Leave steps_per_epoch and validation_steps out of fit.")


def batches_per_epoch(source: Source, global_batch_size: int, epochs_per_pass: int = 1) -> int:
    """How many whole global batches an epoch has.

    Raises:
        InputError: if there are too few samples for one.
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
    """Shuffled global batches; an epoch starts where the model's counters stand, and drops its last partial batch.

    Args:
        source: the samples.
        model: the model that is trained; its counters say where an epoch begins after a resume.
        distribution: the replicas; each gets `global_batch_size / replicas` samples of a batch, the first replica the first.
        global_batch_size: samples of one update.
        seed: of the order.
        prepare: called with the parts of one sample and a seed, int64 `[2]`, a pure function of (seed, epoch, sample), for
            the stateless random operations of TensorFlow; returns what the model gets of it. Runs on all cores.
        epochs_per_pass: how many epochs, of equal length, see each sample once: above 1 for data so large that a validation
            after each pass would come too rarely. `prepare` then gets the number of the pass in place of the epoch's.

    Returns:
        For `fit(x=...)`: batches of the parts, each `[share, ...]` on each replica.

    Raises:
        InputError: if there are too few samples for one batch.
    """
    size, share = len(source), global_batch_size // distribution.replicas
    batches = batches_per_epoch(source, global_batch_size, epochs_per_pass)
    start = np.int64(0)  # the batch that the next epoch begins with, counted over all epochs

    def shares(first, count):
        at_once = max(1, source.fetched_together // share)  # shares
        of_epoch = batches * count
        of_pass = of_epoch * epochs_per_pass

        def choose(place):
            number_of_pass, in_pass = place // of_pass, place % of_pass
            left = of_epoch - place % of_epoch
            places = tf.range(in_pass, in_pass + tf.minimum(left, at_once))
            begins = places // count * global_batch_size + (first + places % count) * share
            index = tf.reshape(begins[:, tf.newaxis] + tf.range(share, dtype=tf.int64), [-1])
            return number_of_pass, shuffled(index, seed=seed, epoch=number_of_pass, size=size)

        def fetch(place):
            _, chosen = choose(place)
            return tuple(tf.reshape(part, [-1, share, *part.shape[1:]]) for part in source.fetch(chosen))

        def fetch_with_key(place):
            number_of_pass, chosen = choose(place)
            return tf.repeat(number_of_pass, tf.size(chosen)), chosen, *source.fetch(chosen)

        def epoch_from_start(zero):
            # Read when an iterator is made, so one dataset serves every epoch. A variable would do too, but for what is stateful in
            # a dataset, op determinism takes all parallel calls and all prefetching out of it.
            begin = tf.ensure_shape(tf.numpy_function(lambda _: start, [zero], tf.int64, stateful=False), [])
            end = (begin // batches + 1) * batches
            return tf.data.Dataset.range(begin * count, end * count, at_once)

        dataset = tf.data.Dataset.range(1).flat_map(epoch_from_start)
        if prepare is None:
            dataset = _in_order(dataset, fetch).unbatch()
        else:
            samples = _in_order(dataset, fetch_with_key).unbatch()
            dataset = _in_order(samples, _with_its_seed(prepare, seed), _CORES).batch(share, drop_remainder=True)
        return _ahead(dataset)

    def seek():
        nonlocal start
        epoch, samples_done = counters_of(model).position()
        if samples_done % global_batch_size:
            raise InputError(
                f"The checkpoint stands at sample {samples_done} of its epoch, between two global batches of "
                f"{global_batch_size}. Go on with the --global-batch-size that it was made with."
            )
        start = np.int64(epoch * batches + samples_done // global_batch_size)

    return EpochData(distribution.dataset(shares), batches, before_epoch=seek)


def validation_data(
    source: Source, distribution: Distribution, *, global_batch_size: int, prepare: Prepare | None = None
) -> EpochData:
    """Every sample exactly once, whatever their number, in shares that differ by one sample at most.

    Keras weights each replica's share by its size, so unequal shares are exact, with two limits that shape this: an empty
    share gives NaN, and the shares of the first batch have to be equal. A set too small for that, of less than two samples
    for each replica, is evaluated by every replica in full, which gives the same means.

    Args:
        source: the samples.
        distribution: the replicas.
        global_batch_size: the size that batches come near to (up to twice as much for sets of a few samples per replica).
        prepare: as in `training_data`; its seed depends on the sample alone.

    Returns:
        For `fit(validation_data=...)` and `evaluate`: batches of the parts.
    """
    size, replicas = len(source), distribution.replicas
    sizes = share_sizes(size, replicas, global_batch_size)
    batches = len(sizes)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    begins, ends = (np.broadcast_to(bounds, (batches, replicas)) for bounds in (ends - sizes, ends))
    with tf.device("/cpu:0"):
        begins, ends = tf.constant(begins, tf.int64), tf.constant(ends, tf.int64)

    def shares(first, count):
        def bounds(place):
            at = (place // count, first + place % count)
            return begins[at], ends[at]

        def fetch(place):
            return source.fetch(tf.range(*bounds(place)))

        def fetch_with_key(place):
            numbers = tf.range(*bounds(place))
            return tf.repeat(place, tf.size(numbers)), tf.zeros_like(numbers), numbers, *source.fetch(numbers)

        def size_of(place):
            begin, end = bounds(place)
            return end - begin

        dataset = tf.data.Dataset.range(batches * count)
        if prepare is None:
            dataset = _in_order(dataset, fetch)
        else:
            prepare_one = _with_its_seed(prepare, 0)
            samples = _in_order(dataset, fetch_with_key).unbatch()
            samples = _in_order(samples, lambda place, *sample: (place, prepare_one(*sample)), _CORES)
            dataset = samples.group_by_window(
                key_func=lambda place, _: place,
                reduce_func=lambda _, share: share.map(lambda _, sample: sample).batch(size),
                window_size_func=size_of,
            )
        return _ahead(dataset)

    return EpochData(distribution.dataset(shares), batches)


def _with_its_seed(prepare: Prepare, seed: int) -> Callable:
    """Prepares a sample whose epoch and number come first."""

    def prepare_one(epoch, number, *sample):
        return prepare(*sample, seed=tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), number))

    return prepare_one


def _in_order(dataset: tf.data.Dataset, function: Callable, calls: int = tf.data.AUTOTUNE) -> tf.data.Dataset:
    """Maps in parallel; on all cores, but on no more than 16 where nothing else is said (see `_ahead`)."""
    return dataset.map(function, num_parallel_calls=calls, deterministic=True)


def _ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prepares batches while others are trained on.

    TensorFlow's search for the best number of parallel calls is left out. It finds the number of cores, and its thread holds up the
    end of each iterator, and with it the next epoch, for as long as several seconds.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def share_sizes(size: int, replicas: int, global_batch_size: int) -> np.ndarray:
    """How many samples each replica validates on in each batch.

    Returns:
        `[batches, replicas]`: all above zero, the first row of equal numbers, `size` in all. Or `[batches, 1]`, where that
        is not possible: then every replica takes the whole batch.
    """
    if size % replicas and size < 2 * replicas:
        return np.array([[size]])
    batches = min(-(-size // global_batch_size), size // replicas)
    if size % replicas:
        batches = max(batches, 2)
    share, extra = divmod(size, batches * replicas)
    sizes = np.full(batches * replicas, share)
    if extra >= replicas:
        sizes[:replicas] += 1
        extra -= replicas
    if extra:
        sizes[-extra:] += 1
    return sizes.reshape(batches, replicas)
