"""The data order is a pure function of (seed, epoch, index), and seeking to any position is immediate."""

import re
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from launching import wait_for

from callbacks import Counts, InputError, counters_of
from recipes.common.data import Arrays, training_data, validation_data
from recipes.common.data.shuffle import shuffle_index
from recipes.common.distribution import Distribution
from recipes.mnist import build_model

SINGLE = Distribution("single", ("/cpu:0",))


def order(size, seed=0, epoch=0):
    return shuffle_index(tf.range(size, dtype=tf.int64), seed=seed, epoch=tf.constant(epoch, tf.int64), size=size).numpy()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1437, 60000])
def test_each_epoch_has_every_sample_once(size):
    assert np.array_equal(np.sort(order(size)), np.arange(size))


def test_seed_and_epoch_each_change_the_order():
    orders = {(seed, epoch): tuple(order(100, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9


def test_a_part_of_the_order_is_computed_without_the_rest_of_it():
    part = shuffle_index(tf.range(40, 60, dtype=tf.int64), seed=3, epoch=tf.constant(7, tf.int64), size=1437)
    assert np.array_equal(part, order(1437, seed=3, epoch=7)[40:60])


def test_neighbors_in_the_order_are_not_neighbors_in_the_data():
    distances = np.diff(order(1437))
    assert np.mean(np.abs(distances) <= 2) < 0.01
    assert abs(np.corrcoef(np.arange(1437), order(1437))[0, 1]) < 0.1


def test_seeking_to_batch_a_billion_takes_little_time_and_memory():
    model = build_model("mlp", (8, 8, 1))
    model.compile("sgd", "sparse_categorical_crossentropy")
    arrays = Arrays(np.zeros((1437, 1), "float32"), np.arange(1437))
    data = training_data(arrays, model, SINGLE, global_batch_size=64, seed=0)
    data.on_epoch_begin()
    next(iter(data.get_tf_dataset()))  # the overhead of the first batch

    epoch, done = divmod(10**9, data.num_batches)
    counts = Counts(batch=10**9, epoch=epoch + 1, samples=64 * 10**9, batches_in_epoch=done, samples_in_epoch=64 * done)
    tracemalloc.start()
    began = time.process_time()
    counters_of(model).resume(counts)
    counters_of(model).begin_epoch(epoch)
    data.on_epoch_begin()
    _, y = next(iter(data.get_tf_dataset()))
    assert time.process_time() - began < 30  # takes 0.1; 100 ns for each earlier batch would be 100
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert np.array_equal(y, order(1437, seed=0, epoch=epoch)[64 * done : 64 * (done + 1)])


@pytest.mark.parametrize("validation", [False, True])
def test_samples_are_prepared_ahead_of_training_in_parallel(validation):
    """Op determinism removes both from a dataset with a stateful function."""
    running, lock = {"prepared": 0, "now": 0, "at once": 0}, threading.Lock()

    def slowly(number):
        with lock:
            running["now"] += 1
            running["at once"] = max(running["at once"], running["now"])
        time.sleep(0.01)
        with lock:
            running["now"] -= 1
            running["prepared"] += 1
        return number

    def prepare(x, y, seed):
        return tf.numpy_function(slowly, [x], tf.int64, stateful=False), y

    arrays = Arrays(np.arange(64), np.arange(64))
    if validation:
        data = validation_data(arrays, SINGLE, global_batch_size=8, prepare=prepare)
    else:
        model = build_model("mlp", (8, 8, 1))
        data = training_data(arrays, model, SINGLE, global_batch_size=8, seed=0, prepare=prepare)
    data.on_epoch_begin()
    batches = iter(data.get_tf_dataset())
    next(batches)
    wait_for(lambda: running["prepared"] >= 16, "a batch that nobody has asked for")
    assert running["at once"] > 1


def test_prepare_reads_files_whose_paths_are_in_memory(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(str(number))
    source = Arrays(np.array([str(tmp_path / f"{number}.txt") for number in range(8)]), np.arange(8))

    def read(path, label, seed):
        return tf.strings.to_number(tf.io.read_file(path)), label

    data = validation_data(source, SINGLE, global_batch_size=4, prepare=read)
    assert [batch[0].numpy().tolist() for batch in data.get_tf_dataset()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    model = build_model("mlp", (8, 8, 1))
    model.compile("sgd", "sparse_categorical_crossentropy")
    counters_of(model).begin_epoch(0)
    data = training_data(source, model, SINGLE, global_batch_size=4, seed=0, prepare=read)
    data.on_epoch_begin()
    numbers = [(x.numpy(), y.numpy()) for x, y in data.get_tf_dataset()]
    assert sorted(x for part, _ in numbers for x in part) == list(range(8))
    assert all(np.array_equal(x, y) for x, y in numbers)


@pytest.mark.parametrize("make", [lambda data: training_data(data, None, SINGLE, global_batch_size=2, seed=0),
                                  lambda data: validation_data(data, SINGLE, global_batch_size=2)])  # fmt: skip
def test_a_tf_dataset_is_refused_with_advice(make):
    with pytest.raises(InputError, match=re.escape("Arrays(paths, labels) with a prepare function")) as raised:
        make(tf.data.Dataset.range(4))
    assert "\n" not in str(raised.value)


def test_ranks_without_rank_synchronization_are_refused():
    model = build_model("mlp", (8, 8, 1))
    model.compile("sgd", "sparse_categorical_crossentropy")
    world = Distribution("horovod", ("/cpu:0",), None, SimpleNamespace(rank=0, size=1, is_chief=True))
    arrays = Arrays(np.zeros((8, 8, 8, 1), "float32"), np.zeros(8, "int64"))
    with pytest.raises(InputError, match=re.escape("Begin the list of callbacks of fit with *distribution.callbacks()")):
        model.fit(training_data(arrays, model, world, global_batch_size=4, seed=0), verbose=0)
    assert counters_of(model).read().batch == 0
