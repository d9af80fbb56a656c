"""A training that XLA compiles is the uncompiled one: every recipe, on any number of replicas, in any precision."""

import functools

import keras
import pytest
from bare_ranks import run_ranks
from compiled import (
    BATCHES,
    FLIPPED,
    MODELS,
    PART,
    WHOLE,
    Trained,
    assert_equal,
    assert_rounded_alike,
    assert_same_counts,
    classes,
    cpus,
    digits,
    distance,
    language,
)

COMPILED = {1: WHOLE, 2: PART}
pytestmark = pytest.mark.usefixtures("no_determinism")  # under it, Keras compiles nothing, and XLA refuses max pooling


@pytest.mark.slow
@pytest.mark.parametrize("replicas", COMPILED)
@pytest.mark.parametrize("make", [functools.partial(digits, dropout=0.4), language], ids=["convnet", "language model"])
def test_a_compiled_training_is_the_plain_one(make, replicas):
    plain, compiled = (Trained(make, cpus(replicas), choice, "float64") for choice in ("off", "on"))
    assert (plain.compiles, compiled.compiles) == ("", COMPILED[replicas])
    assert_equal(plain, compiled, 1e-11)
    assert compiled.counts.batch == 2 * BATCHES


@functools.cache
def gradient_in_float64(name, replicas):
    return Trained(MODELS[name], cpus(replicas), "off", "float64", at_once=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("replicas", COMPILED)
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_recipe_rounds_no_worse_than_the_plain_one(name, replicas, precision):
    plain, compiled = (Trained(MODELS[name], cpus(replicas), choice, precision, at_once=True) for choice in ("off", "on"))
    assert compiled.compiles == COMPILED[replicas]
    assert_rounded_alike(plain, compiled, gradient_in_float64(name, replicas), precision)


def attentive():
    """A language model with dropout of attention, units and channels, and noise."""
    layers = keras.layers
    tokens = keras.Input([4], dtype="int32")
    x = layers.Dropout(0.3)(layers.Embedding(11, 8)(tokens))
    x = layers.SpatialDropout1D(0.3)(layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x))
    x = layers.GaussianNoise(0.1)(layers.Dense(8, "relu")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = keras.Model(tokens, layers.Dense(11)(x))
    return model, keras.optimizers.SGD(0.05), loss, classes(11, 4).astype("int32"), classes(11, 4)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", COMPILED)
@pytest.mark.parametrize("make", [functools.partial(digits, dropout=0.4), attentive], ids=["convnet", "language model"])
def test_dropout_drops_what_it_drops_without_xla(make, replicas):
    plain, compiled = (Trained(make, cpus(replicas), choice, at_once=True) for choice in ("off", "on"))
    assert compiled.compiles == COMPILED[replicas]
    assert_same_counts(plain, compiled)
    assert distance(compiled, plain) <= FLIPPED


@pytest.mark.slow
def test_sample_weights_count_and_executions_of_several_batches_too():
    options = {"precision": "float64", "weighted": True, "steps_per_execution": 4}
    plain, compiled = (Trained(digits, cpus(2), choice, **options) for choice in ("off", "on"))
    assert_equal(plain, compiled, 1e-11)
    assert compiled.counts.batch == 2 * BATCHES


@pytest.mark.slow
def test_two_ranks_train_as_without_xla(engine):
    for code, _, errors in run_ranks(2, "tests/programs/compiled_ranks.py", engine, engine=engine, timeout=580):
        assert code == 0, errors
