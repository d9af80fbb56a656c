"""Clipping and accumulation use the gradients of the whole global batch, for any number of replicas."""

import keras
import numpy as np
import pytest

from recipes.common.distribution import Distribution

CASES = {"clipped": {}, "clipped and accumulated": {"gradient_accumulation_steps": 3}}


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def distribution(strategy, replicas):
    devices = tuple(f"/cpu:{i}" for i in range(replicas))
    return Distribution("any", devices, strategy(replicas) if replicas > 1 else None)


def trained(strategy, replicas, options):
    """Returns all variables after ten batches, in the middle of an accumulation."""
    where = distribution(strategy, replicas)
    keras.utils.set_random_seed(0)
    with where.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile(where.optimizer(keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.05, **options)), "mse")
    x = np.random.default_rng(0).normal(size=(80, 6))
    model.fit(x, 3 * x[:, :1], batch_size=8, shuffle=False, verbose=0)
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_two_replicas_end_with_the_weights_of_one(strategy, float64, options):
    single, mirrored = (trained(strategy, replicas, options) for replicas in (1, 2))
    for one, other in zip(single, mirrored, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)


def test_repeated_rows_of_an_embedding_are_summed_first(strategy, float64):
    words = np.array([0, 1, 1, 2, 1, 1, 0, 0])[:, np.newaxis]
    found = []
    for replicas in (1, 2):
        where = distribution(strategy, replicas)
        keras.utils.set_random_seed(0)
        with where.scope():
            model = keras.Sequential(
                [keras.Input((1,)), keras.layers.Embedding(3, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
            )
            model.compile(where.optimizer(keras.optimizers.Adam(0.01, global_clipnorm=0.01)), "mse")
        model.fit(words, words.astype("float64"), batch_size=8, shuffle=False, epochs=3, verbose=0)
        found.append([v.numpy() for v in [*model.variables, *model.optimizer.variables]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)
