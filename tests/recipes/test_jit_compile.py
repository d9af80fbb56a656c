"""`--jit-compile`: a compiled training is the plain one, on any number of replicas, in any precision, and after kills."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from bare_ranks import run_ranks
from compare import assert_same_rest, assert_same_weights
from tensorflow.python.framework import config

from callbacks import counters_of
from launch.exit_codes import BAD_INPUT
from recipes import imagenet_resnet50, mnist, transformer_lm
from recipes.common.distribution import Distribution
from recipes.common.distribution.compiled_step import JitCompile
from recipes.common.run import run

BATCH, BATCHES = 8, 6
# Of weights, as parts of each variable's largest value, and of losses. In float16 and bfloat16, XLA rounds at other places.
TOLERANCES = {
    "float64": (1e-11, 1e-11),
    "float32": (1e-4, 1e-4),
    "mixed_float16": (0.5, 0.05),
    "mixed_bfloat16": (0.5, 0.05),
}
SCALE = 128.0  # of a float16 loss at the beginning: one at which nothing overflows
PART, WHOLE = "forward and backward on each replica", "the train step"


def distribution(strategy, replicas):
    devices = tuple(f"/cpu:{i}" for i in range(replicas))
    return Distribution("any", devices, strategy(replicas) if replicas > 1 else None)


def random(*shape):
    return np.random.default_rng(0).random((BATCHES * BATCH, *shape))


def classes(count, *shape):
    return np.random.default_rng(1).integers(0, count, (BATCHES * BATCH, *shape))


def digits():
    """With BatchNorm, and with Dropout where `mnist.DROPOUT` is not 0."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return mnist.build_model("cnn", (8, 8, 1)), keras.optimizers.SGD(0.05, momentum=0.9), loss, random(8, 8, 1), classes(10)


def language():
    """With embeddings, clipping, and gradients accumulated over two batches."""
    size = transformer_lm.Size(blocks=1, heads=2, width=8, context=4, accumulated=2, training={})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = transformer_lm.build_optimizer(0.01, size.accumulated)
    return transformer_lm.build_model(size, 11), optimizer, loss, classes(11, 4).astype("int32"), classes(11, 4)


def pictures():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=imagenet_resnet50.LABEL_SMOOTHING)
    images = (random(32, 32, 3) * 255).astype("uint8")
    optimizer = keras.optimizers.SGD(0.01, momentum=imagenet_resnet50.MOMENTUM, nesterov=True)
    return imagenet_resnet50.build_model(32, 10), optimizer, loss, images, np.eye(10, dtype="float32")[classes(10)]


class Trained:
    """A model that was trained on six batches in two epochs.

    Args:
        make: gives model, optimizer, loss, inputs and targets.
        where: the replicas.
        choice: of `--jit-compile`.
        precision: `float64`, `float32` or a policy of mixed precision.
    """

    def __init__(self, make, where, choice, precision="float32", weighted=False, **compiled):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        keras.config.set_floatx("float64" if precision == "float64" else "float32")
        keras.mixed_precision.set_global_policy(precision)
        jit_compile = JitCompile(choice, where)
        try:
            with where.scope():
                self.model, optimizer, loss, x, y = make()
                if precision == "mixed_float16":
                    optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=SCALE)
                self.model.compile(where.optimizer(optimizer), loss, weighted_metrics=["accuracy"], **compiled)
                self.model.optimizer.build(self.model.trainable_variables)
            x = x.astype(keras.config.floatx()) if x.dtype.kind == "f" else x
            weights = np.linspace(0.5, 2, len(x)) if weighted else None
            counters = counters_of(self.model)
            callbacks = [jit_compile, *where.callbacks()]
            options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, "callbacks": callbacks}
            self.logs = self.model.fit(x, y, sample_weight=weights, **options).history
            self.counts = counters.read()
        finally:
            keras.config.set_floatx("float32")
        self.compiles = jit_compile.compiles
        self.variables = {v.path: v.numpy() for v in (*self.model.variables, *self.model.optimizer.variables)}


def assert_equal(plain, compiled, tolerances):
    of_weights, of_losses = tolerances
    assert compiled.counts == plain.counts
    assert compiled.logs.keys() == plain.logs.keys()
    np.testing.assert_allclose(compiled.logs["loss"], plain.logs["loss"], rtol=of_losses)
    for name, value in plain.variables.items():
        if value.dtype.kind in "ui":  # seeds, counters
            np.testing.assert_array_equal(compiled.variables[name], value, err_msg=name)
        elif value.size:
            difference = np.abs(compiled.variables[name] - value).max() / max(np.abs(value).max(), 1e-30)
            assert difference <= of_weights, (name, difference)


@pytest.fixture
def no_determinism():
    """As by default on GPUs: under deterministic operations XLA refuses the gradient of max pooling."""
    config.disable_op_determinism()
    yield
    config.enable_op_determinism()


# Equality


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_compiled_language_model_trains_as_a_plain_one(strategy, replicas, precision):
    where = distribution(strategy, replicas)
    plain, compiled = (Trained(language, where, choice, precision) for choice in ("off", "on"))
    assert (plain.compiles, compiled.compiles) == ("", PART)
    assert_equal(plain, compiled, TOLERANCES[precision])
    assert plain.counts.step == BATCHES


@pytest.fixture
def no_dropout(monkeypatch):
    """XLA makes other numbers of the same random bits."""
    monkeypatch.setattr(mnist, "DROPOUT", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "replicas, precision", [(1, "float64"), (2, "float64"), (2, "float32"), (2, "mixed_float16"), (2, "mixed_bfloat16")]
)
def test_a_compiled_convnet_trains_as_a_plain_one(strategy, no_dropout, no_determinism, replicas, precision):
    where = distribution(strategy, replicas)
    plain, compiled = (Trained(digits, where, choice, precision) for choice in ("off", "on"))
    assert compiled.compiles == (WHOLE if replicas == 1 else PART)
    assert_equal(plain, compiled, TOLERANCES[precision])


@pytest.mark.slow
def test_a_compiled_resnet_trains_as_a_plain_one(strategy, no_determinism):
    where = distribution(strategy, 2)
    plain, compiled = (Trained(pictures, where, choice) for choice in ("off", "on"))
    assert compiled.compiles == PART
    assert compiled.counts == plain.counts
    # Not the weights: fifty BatchNorms of four samples each enlarge rounding to a tenth of small values.
    np.testing.assert_allclose(compiled.logs["loss"], plain.logs["loss"], rtol=1e-3)


@pytest.mark.slow
def test_sample_weights_count_and_executions_of_several_batches_too(strategy, no_dropout, no_determinism):
    where = distribution(strategy, 2)
    options = {"precision": "float64", "weighted": True, "steps_per_execution": 4}
    plain, compiled = (Trained(digits, where, choice, **options) for choice in ("off", "on"))
    assert_equal(plain, compiled, TOLERANCES["float64"])
    assert compiled.counts.batch == 2 * BATCHES


@pytest.mark.slow
def test_dropout_draws_from_the_same_seeds_as_often(strategy):
    def with_dropout():
        return small(keras.layers.Dropout(0.5))()

    where = distribution(strategy, 2)
    plain, compiled = (Trained(with_dropout, where, choice) for choice in ("off", "on"))
    seeds = {name for name, value in plain.variables.items() if "seed" in name}
    assert seeds
    for name in seeds:
        np.testing.assert_array_equal(compiled.variables[name], plain.variables[name])


@pytest.mark.slow
def test_two_ranks_train_as_without_xla(engine, tmp_path):
    for code, _, errors in run_ranks(2, "tests/programs/compiled_ranks.py", engine, tmp_path, engine=engine):
        assert code == 0, errors
    found = np.load(tmp_path / "found.npz")
    assert found["counts"].tolist() == [12, 6]


# What is compiled, and what is not


class Opaque(keras.layers.Layer):
    """Calls Python in its forward pass, which XLA cannot compile."""

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [x], x.dtype), x.shape)


class OwnStep(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


class Unsupported(keras.layers.Dense):
    def __init__(self, units):
        super().__init__(units)
        self.supports_jit = False


def small(*layers, kind=keras.Model):
    x = keras.Input((6,))
    return lambda: (kind(x, keras.Sequential([*layers, keras.layers.Dense(3)])(x)), keras.optimizers.SGD(0.1),
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True), random(6), classes(3))  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_compiles_the_forward_pass(strategy, replicas):
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        Trained(small(Opaque()), distribution(strategy, replicas), "on")


def test_an_operation_that_xla_cannot_compile_ends_the_run_in_one_line(strategy, capsys):
    with pytest.raises(SystemExit) as ended:
        run(lambda: Trained(small(Opaque()), distribution(strategy, 1), "on"))
    assert ended.value.code == BAD_INPUT
    errors = capsys.readouterr().err
    assert errors.startswith("error: XLA cannot compile this training. Use --jit-compile off. ") and errors.count("\n") == 1


@pytest.mark.parametrize("replicas, choice", [(1, "auto"), (1, "off"), pytest.param(2, "auto", marks=pytest.mark.slow)])
def test_nothing_is_compiled_on_cpus_unless_asked_for(strategy, replicas, choice):
    trained = Trained(small(Opaque()), distribution(strategy, replicas), choice)
    assert not trained.model.jit_compile and trained.compiles == ""


@pytest.mark.parametrize(
    "make, compiled, why",
    [
        (small(kind=OwnStep), {}, "OwnStep has its own train_step, and only Keras's can be compiled in part"),
        (small(), {"run_eagerly": True}, "the model runs eagerly"),
        (small(Unsupported(2)), {}, "XLA cannot compile unsupported"),
        (small(keras.layers.Reshape([2, 3]), keras.layers.MaxPooling1D(), keras.layers.Flatten()), {}, "no deterministic gradient"),
        (small(keras.layers.BatchNormalization(synchronized=True)), {}, "batch_normalization sums over the replicas"),
    ],
    ids=["own step", "eager", "a layer", "max pooling", "synchronized"],
)
def test_a_line_says_what_is_not_compiled(strategy, make, compiled, why):
    trained = Trained(make, distribution(strategy, 1), "on", **compiled)
    assert trained.compiles.startswith("off: ") and why in trained.compiles
    assert trained.counts.batch == 2 * BATCHES


@pytest.mark.parametrize(
    "where, choice, said",
    [
        (Distribution("horovod", ("/gpu:0",), ranks=object()), "auto", "off on several replicas (not measured on a GPU); "),
        (
            Distribution("horovod", ("/gpu:0",), ranks=object()),
            "on",
            "forward and backward on each replica (not measured on a GPU)",
        ),
        (Distribution("single", ("/gpu:0",)), "auto", ""),
    ],
)
def test_what_was_not_measured_is_labelled(where, choice, said):
    jit_compile = JitCompile(choice, where)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    jit_compile.set_model(model)
    jit_compile.on_train_begin()
    assert jit_compile.compiles.startswith(said) and bool(jit_compile.compiles) == bool(said)


def test_a_second_fit_follows_its_own_flag(strategy):
    where = distribution(strategy, 1)
    model = Trained(small(Opaque()), where, "off").model

    def fit(choice):
        model.fit(random(6), classes(3), batch_size=BATCH, verbose=0, callbacks=[JitCompile(choice, where)])

    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        fit("on")
    fit("off")


# Restarts


@pytest.mark.slow
@pytest.mark.parametrize("replicas, compiles", [(1, WHOLE), (2, PART)])
def test_a_compiled_run_that_is_killed_ends_with_the_same_bits(recipe, tmp_path, replicas, compiles):
    flags = ["--epochs", 3, "--no-deterministic", "--jit-compile", "on", "--virtual-devices", replicas, "--save-freq", 6]
    whole = recipe(*flags, "--workdir", tmp_path / "whole")
    checkpoints = tmp_path / "killed" / "checkpoints"
    command = [*flags, "--workdir", tmp_path / "killed"]
    for batch in (12, 36):
        recipe(*command).kill_when((checkpoints / f"model_batch_at_{batch:05d}.weights.h5").exists)
    code, out, errors = recipe(*command).finish()
    assert code == 0, errors
    assert re.search(rf"^jit-compile  {compiles}$", out, re.MULTILINE), out
    assert "trained on   66 batches, 4224 samples, 66 steps" in out
    code, _, errors = whole.finish()
    assert code == 0, errors
    one, other = (tmp_path / run / "checkpoints" / "model_batch_at_00066.weights.h5" for run in ("whole", "killed"))
    assert_same_weights(one, other)
    assert_same_rest(one, other)
