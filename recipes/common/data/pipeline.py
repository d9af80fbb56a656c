"""Steps of the input pipelines of training and validation."""

import os
from collections.abc import Callable

import tensorflow as tf

from recipes.common.data.sources import Prepare

CORES = len(os.sched_getaffinity(0))


def seeded(prepare: Prepare, seed: int) -> Callable:
    """Returns a function of (epoch, number, *sample) that prepares a sample with a seed of its own."""

    def prepare_one(epoch, number, *sample):
        return prepare(*sample, seed=tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), number))

    return prepare_one


def map_in_order(dataset: tf.data.Dataset, function: Callable, calls: int = tf.data.AUTOTUNE) -> tf.data.Dataset:
    """Maps in parallel, in `calls` calls; by default on all cores, but at most 16 (see `prefetch`)."""
    return dataset.map(function, num_parallel_calls=calls, deterministic=True)


def prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prepares batches while earlier batches are trained on.

    Turns off TensorFlow's autotuning of parallel calls, which chooses the number of cores anyway, and whose thread delays the end
    of each iterator, and so the next epoch, by up to several seconds.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
