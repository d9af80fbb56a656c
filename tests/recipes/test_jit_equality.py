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
@pytest.mark.parametrize(
    "make, replicas, options",
    [
        (functools.partial(digits, dropout=0.4), 1, {}),
        (functools.partial(digits, dropout=0.4), 2, {"weighted": True, "steps_per_execution": 4}),
        (language, 2, {}),
    ],
    ids=["convnet", "convnet with sample weights and executions of several batches", "language model"],
)
def test_a_compiled_training_is_the_plain_one(make, replicas, options):
    plain, compiled = (Trained(make, cpus(replicas), choice, "float64", **options) for choice in ("off", "on"))
    assert (plain.compiles, compiled.compiles) == ("", COMPILED[replicas])
    assert_equal(plain, compiled, 1e-11)
    assert compiled.counts.batch == 2 * BATCHES


# Each recipe and each precision with one and with two replicas; convolutions and attention in each low precision.
ROUNDED = [
    ("mnist", 1, "float32"),
    ("mnist", 2, "mixed_float16"),
    ("transformer_lm", 1, "mixed_float16"),
    ("transformer_lm", 2, "mixed_bfloat16"),
    ("imagenet_resnet50", 1, "mixed_bfloat16"),
    ("imagenet_resnet50", 2, "float32"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, replicas, precision", ROUNDED)
def test_a_compiled_recipe_rounds_no_worse_than_the_plain_one(name, replicas, precision):
    plain, compiled = (Trained(MODELS[name], cpus(replicas), choice, precision, at_once=True) for choice in ("off", "on"))
    assert compiled.compiles == COMPILED[replicas]
    exact = Trained(MODELS[name], cpus(replicas), "off", "float64", at_once=True)
    assert_rounded_alike(plain, compiled, exact, precision)


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
def test_dropout_drops_what_it_drops_without_xla(replicas):
    plain, compiled = (Trained(attentive, cpus(replicas), choice, at_once=True) for choice in ("off", "on"))
    assert compiled.compiles == COMPILED[replicas]
    assert_same_counts(plain, compiled)
    assert distance(compiled, plain) <= FLIPPED


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine, recipe, precision", [("horovod", "mnist", "mixed_float16"), ("multiworker", "imagenet_resnet50", "mixed_bfloat16")]
)
def test_two_ranks_train_as_without_xla(engine, recipe, precision):
    for code, _, errors in run_ranks(2, "tests/programs/compiled_ranks.py", engine, recipe, precision, engine=engine, timeout=580):
        assert code == 0, errors
