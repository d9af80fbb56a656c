"""Trains the models of the recipes with and without XLA, and compares the two."""

import functools
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

from callbacks import counters_of
from recipes import imagenet_resnet50, mnist, transformer_lm
from recipes.common.distribution import Distribution
from recipes.common.distribution.compiled_step import JitCompile

BATCH, BATCHES = 8, 6
SCALE = 128.0  # of a float16 loss at the beginning: one at which nothing overflows
# Compiled and uncompiled, the same numbers are rounded as often, but in another order: the errors differ, but not in size.
FACTOR = 2
FLIPPED = 1e-3  # of a gradient in float32: what one unit matters whose input is within rounding of zero
PART, WHOLE = "forward and backward on each replica", "the train step"


@functools.cache
def cpus(replicas):
    """Returns a distribution over CPU devices."""
    devices = [f"/cpu:{i}" for i in range(replicas)]
    one_by_one = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(devices, one_by_one) if replicas > 1 else None
    return Distribution("any", tuple(devices), strategy)


def random(*shape):
    return np.random.default_rng(0).random((BATCHES * BATCH, *shape))


def classes(count, *shape):
    return np.random.default_rng(1).integers(0, count, (BATCHES * BATCH, *shape))


def digits(dropout=0.0):
    """With BatchNorm."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with mock.patch.object(mnist, "DROPOUT", dropout):
        model = mnist.build_model("cnn", (8, 8, 1))
    return model, keras.optimizers.SGD(0.05, momentum=0.9), loss, random(8, 8, 1), classes(10)


def language():
    """With embeddings, clipping, and gradients accumulated over two batches."""
    size = transformer_lm.Size(blocks=1, heads=2, width=8, context=4, accumulated=2, training={})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = transformer_lm.build_optimizer(0.01, size.accumulated)
    return transformer_lm.build_model(size, 11), optimizer, loss, classes(11, 4).astype("int32"), classes(11, 4)


def pictures():
    """ResNet-50 with one block of few channels."""

    def stages(x):
        return stack_residual_blocks_v1(x, 8, 1, name="conv3")

    small = functools.partial(ResNet, stages, preact=False, use_bias=True)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=imagenet_resnet50.LABEL_SMOOTHING)
    images = (random(32, 32, 3) * 255).astype("uint8")
    optimizer = keras.optimizers.SGD(0.01, momentum=imagenet_resnet50.MOMENTUM, nesterov=True)
    with mock.patch.object(keras.applications, "ResNet50", small):
        model = imagenet_resnet50.build_model(32, 10)
    return model, optimizer, loss, images, np.eye(10, dtype="float32")[classes(10)]


MODELS = {"mnist": digits, "transformer_lm": language, "imagenet_resnet50": pictures}


class Trained:
    """A model that was trained on six batches in two epochs, or for a gradient in one update.

    Args:
        make: gives model, optimizer, loss, inputs and targets.
        where: the replicas.
        choice: of `--jit-compile`.
        precision: `float64`, `float32` or a policy of mixed precision.
        weighted: whether samples have weights.
        at_once: whether all batches are one, of one epoch, in which the optimizer subtracts the gradient.
    """

    def __init__(self, make, where, choice, precision="float32", weighted=False, at_once=False, **compiled):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        keras.config.set_floatx("float64" if precision == "float64" else "float32")
        keras.mixed_precision.set_global_policy(precision)
        jit_compile = JitCompile(choice, where)
        try:
            with where.scope():
                self.model, optimizer, loss, x, y = make()
                if at_once:
                    optimizer = keras.optimizers.SGD(1.0)
                if precision == "mixed_float16":
                    optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=SCALE)
                self.model.compile(where.optimizer(optimizer), loss, weighted_metrics=["accuracy"], **compiled)
                self.model.optimizer.build(self.model.trainable_variables)
            _initialize(self.model)
            x = x.astype(keras.config.floatx()) if x.dtype.kind == "f" else x
            rank, ranks = (where.ranks.rank, where.ranks.size) if where.ranks else (0, 1)
            x, y, weights = (part[rank::ranks] for part in (x, y, np.linspace(0.5, 2, len(x))))
            self.before = self._values()
            counters = counters_of(self.model)
            options = {"batch_size": len(x) if at_once else BATCH // ranks, "epochs": 1 if at_once else 2}
            callbacks = [jit_compile, *where.callbacks()]
            fitted = self.model.fit(
                x, y, sample_weight=weights if weighted else None, shuffle=False, verbose=0, callbacks=callbacks, **options
            )
            self.logs, self.counts = fitted.history, counters.read()
        finally:
            keras.config.set_floatx("float32")
        self.compiles = jit_compile.compiles
        self.after = self._values()

    def _values(self):
        values = {v.path: v.numpy() for v in (*self.model.variables, *self.model.optimizer.variables)}
        return {name: value for name, value in values.items() if value.size}


def _initialize(model):
    """Gives the matrices of a model random values that are the same in each precision; those of initializers are not."""
    random = np.random.default_rng(2)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign((random.standard_normal(variable.shape) / np.sqrt(np.prod(variable.shape[:-1]))).astype("float32"))


def assert_equal(plain, compiled, tolerance):
    """Checks that counts and seeds are equal, losses to a relative tolerance, and variables to one of their largest value."""
    assert_same_counts(plain, compiled)
    np.testing.assert_allclose(compiled.logs["loss"], plain.logs["loss"], rtol=tolerance)
    for name, value in plain.after.items():
        if value.dtype.kind not in "ui":
            difference = np.abs(compiled.after[name] - value).max() / max(np.abs(value).max(), 1e-30)
            assert difference <= tolerance, (name, difference)


def assert_rounded_alike(plain, compiled, exact, precision):
    """Checks that the gradient of a compiled training is not much farther from the one in float64 than that of the plain one.

    Args:
        plain, compiled, exact: trainings in one update; the last one in float64.
    """
    assert_same_counts(plain, compiled)
    allowed = max(FACTOR * distance(plain, exact), FLIPPED if precision == "float32" else 0)
    assert distance(compiled, exact) <= allowed, (distance(plain, exact), distance(compiled, exact))


def distance(one, other):
    """The distance of the gradients of two trainings in one update, relative to the gradient."""
    changes = [
        [run.after[v.path].astype("float64") - run.before[v.path] for v in run.model.trainable_variables] for run in (one, other)
    ]
    a, b = (np.concatenate([change.ravel() for change in each]) for each in changes)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def assert_same_counts(plain, compiled):
    assert compiled.counts == plain.counts
    assert compiled.logs.keys() == plain.logs.keys()
    for name, value in plain.after.items():
        if value.dtype.kind in "ui":  # seeds, counters
            np.testing.assert_array_equal(compiled.after[name], value, err_msg=name)
