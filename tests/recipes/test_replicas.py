"""The number of replicas does not change the samples, their order, or the final weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from compare import datasets
from processes import Process

from callbacks import Counts, InputError, counters_of
from recipes.common.data import Arrays, share_sizes, training_data, validation_data
from recipes.common.distribution import Distribution
from recipes.mnist import build_model

REPLICAS = (1, 2, 4)


@pytest.fixture
def distribution(strategy):
    def make(replicas):
        devices = tuple(f"/cpu:{i}" for i in range(replicas))
        return Distribution("any", devices, strategy(replicas) if replicas > 1 else None)

    return make


def numbered(size):
    return Arrays(np.arange(size, dtype="float32")[:, None], np.arange(size))


def batches(data, distribution):
    """Returns the global batches of one epoch, each as a list of the replicas' shares."""
    data.on_epoch_begin()
    local = distribution.strategy.experimental_local_results if distribution.strategy else lambda value: (value,)
    return [[share.numpy() for share in local(y)] for _, y in data.get_tf_dataset()]


def training(workdir, replicas):
    flags = ["--model", "mlp", "--epochs", 5, "--global-batch-size", 64, "--save-freq", 100, "--virtual-devices", replicas]
    return Process(*flags, "--workdir", workdir)


@pytest.mark.slow
def test_one_two_and_four_replicas_end_with_equal_weights(tmp_path):
    """In float32. test_ranks_recipe.py and test_transformer_lm.py compare trainings in float64."""
    running = [training(tmp_path / str(replicas), replicas) for replicas in REPLICAS]
    for each in running:
        code, _, errors = each.finish()
        assert code == 0, errors
    checkpoints = [tmp_path / str(replicas) / "checkpoints" / "model_batch_at_00100.weights.h5" for replicas in REPLICAS]
    single, *others = (datasets(path) for path in checkpoints)
    for other in others:
        for name, value in single.items():
            scale = max(np.abs(value).max(), 1e-30)
            assert np.abs(other[name] - value).max() <= 1e-6 * scale, name


def test_the_order_is_the_same_for_any_number_of_replicas(distribution):
    orders = []
    for replicas in REPLICAS:
        where = distribution(replicas)
        with where.scope():
            model = build_model("mlp", (8, 8, 1))
        data = training_data(numbered(30), model, where, global_batch_size=8, seed=5)
        epoch = batches(data, where)
        assert [[len(share) for share in batch] for batch in epoch] == [[8 // replicas] * replicas] * 3
        orders.append([np.concatenate(batch).tolist() for batch in epoch])
    assert orders[0] == orders[1] == orders[2]
    assert len({number for batch in orders[0] for number in batch}) == 24


def noisy(x, y, *, seed):
    return x + tf.random.stateless_uniform([1], seed=seed), y


def test_the_seed_of_a_sample_depends_only_on_its_number_and_the_epoch(distribution):
    found = {}
    for replicas, begin in ((1, 0), (2, 0), (4, 1)):
        where = distribution(replicas)
        with where.scope():
            model = build_model("mlp", (8, 8, 1))
        counters = counters_of(model)
        for epoch in (0, 1):
            done = begin if epoch == 0 else 0  # the last of the three resumes in the middle of an epoch
            counters.resume(Counts(epoch=epoch + 1, batches_in_epoch=done, samples_in_epoch=8 * done))
            counters.begin_epoch(epoch)
            data = training_data(numbered(30), model, where, global_batch_size=8, seed=5, prepare=noisy)
            data.on_epoch_begin()
            local = where.strategy.experimental_local_results if where.strategy else lambda value: (value,)
            xs = [np.concatenate([share.numpy()[:, 0] for share in local(x)]) for x, _ in data.get_tf_dataset()]
            found[replicas, epoch] = xs
    for epoch in (0, 1):
        np.testing.assert_array_equal(found[1, epoch], found[2, epoch])
    np.testing.assert_array_equal(found[1, 0][1:], found[4, 0])
    np.testing.assert_array_equal(found[1, 1], found[4, 1])
    noise = {epoch: np.sort(np.concatenate(found[1, epoch]) % 1) for epoch in (0, 1)}
    assert len(np.unique(np.concatenate(list(noise.values())))) == 48


def test_prepared_validation_samples_are_the_same_for_any_number_of_replicas_and_each_time(distribution):
    found = []
    for replicas in (1, 2, 2):
        where = distribution(replicas)
        data = validation_data(numbered(13), where, global_batch_size=4, prepare=noisy)
        local = where.strategy.experimental_local_results if where.strategy else lambda value: (value,)
        found.append(np.concatenate([share.numpy() for x, _ in data.get_tf_dataset() for share in local(x)]))
    assert found[0].shape == (13, 1)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 8])
def test_validation_shares_are_never_empty_and_the_first_ones_are_equal(replicas):
    for size in range(1, 200):
        for global_batch_size in range(replicas, 65, replicas):
            sizes = share_sizes(size, replicas, global_batch_size)
            assert sizes.sum() == size and sizes.min() > 0
            assert len(set(sizes[0])) == 1
            assert np.ptp(sizes) <= 1
            assert sizes.shape[1] == replicas or size < 2 * replicas


@pytest.mark.parametrize("size", [4, 31, 32, 33, 97])
@pytest.mark.parametrize("replicas", REPLICAS)
def test_validation_counts_every_sample_once(distribution, size, replicas):
    where = distribution(replicas)
    data = validation_data(numbered(size), where, global_batch_size=8)
    found = batches(data, where)
    assert len(found) == data.num_batches
    assert np.concatenate([share for batch in found for share in batch]).tolist() == list(range(size))


@pytest.mark.slow
@pytest.mark.parametrize("replicas", REPLICAS)
def test_validation_metrics_are_exact_for_any_size(distribution, replicas):
    where = distribution(replicas)
    with where.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    random = np.random.default_rng(0)
    for size in (1, 3, 5, 13, 37):
        held_out = Arrays(random.random((size, 3)).astype("float32"), random.integers(0, 2, size))
        result = model.evaluate(validation_data(held_out, where, global_batch_size=8), verbose=0)
        logits = held_out.x.astype("float64") @ model.layers[-1].kernel.numpy()  # the bias is zero
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        exact = -log_probabilities[np.arange(size), held_out.y].mean(), (logits.argmax(axis=1) == held_out.y).mean()
        np.testing.assert_allclose(result, exact, rtol=1e-6, err_msg=str(size))


def test_less_data_than_one_global_batch_is_refused(distribution):
    with pytest.raises(InputError, match=r"at least one global batch, of 64.*30 samples"):
        training_data(numbered(30), None, distribution(1), global_batch_size=64, seed=0)


def test_data_without_an_epoch_counter_is_an_error(distribution):
    model = build_model("mlp", (1, 1, 1))
    model.compile("sgd", "sparse_categorical_crossentropy")
    data = training_data(
        Arrays(np.zeros((16, 1, 1, 1), "float32"), np.zeros(16)), model, distribution(1), global_batch_size=8, seed=0
    )
    with pytest.raises(RuntimeError, match="Add GlobalStepCheckpoint"):
        model.fit(data, epochs=2, verbose=0)


def fit(distribution, callbacks=(), **options):
    with distribution.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(24)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    source = numbered(24)
    data = training_data(source, model, distribution, global_batch_size=8, seed=0)
    validation = validation_data(source, distribution, global_batch_size=8)
    counts = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: counters_of(model).begin_epoch(epoch))
    model.fit(data, validation_data=validation, epochs=4, verbose=0, callbacks=[counts, *callbacks], **options)


@pytest.mark.slow
def test_no_unused_iterator_over_the_replicas_is_created(distribution, monkeypatch):
    two = distribution(2)
    of_tensorflow = type(two.strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.range(2)))
    made, make, at_ends = [], of_tensorflow.__iter__, []
    monkeypatch.setattr(of_tensorflow, "__iter__", lambda dataset: made.append(dataset) or make(dataset))
    fit(two, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: at_ends.append(len(made)))])
    assert np.diff(at_ends).tolist() == [3, 3, 3]  # training, validation, and one that `evaluate` uses to inspect the first batch


def test_steps_per_epoch_beside_the_data_is_refused(distribution):
    with pytest.raises(InputError, match="Do not pass steps_per_epoch"):
        fit(distribution(2), steps_per_epoch=3)
