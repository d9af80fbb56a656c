"""A rank that trains with and without XLA: compiled_ranks.py ENGINE DIRECTORY

Each rank fails where the two differ, and the chief writes the counters.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import recipes.mnist
from callbacks import counters_of
from callbacks.ranks import install
from recipes.common.distribution import Distribution
from recipes.common.distribution.compiled_step import JitCompile
from recipes.common.distribution.setup import ENGINES

BATCHES, SHARE = 6, 4
optimizers = keras.optimizers


def scaled():
    return optimizers.LossScaleOptimizer(sgd(), initial_scale=128)  # at which nothing overflows


def sgd():
    return optimizers.SGD(0.05, momentum=0.9)


def clipped_and_accumulated():
    return optimizers.SGD(0.05, global_clipnorm=0.05, gradient_accumulation_steps=2)


CASES = {  # precision, model, optimizer, options of compile, tolerance
    "convnet": ("float64", "cnn", sgd, {}, 1e-11),
    "float32": ("float32", "mlp", sgd, {}, 1e-4),
    "float16": ("mixed_float16", "mlp", scaled, {}, 5e-2),
    "bfloat16": ("mixed_bfloat16", "mlp", sgd, {}, 2e-1),
    "accumulated": ("float64", "mlp", clipped_and_accumulated, {"steps_per_execution": 4}, 1e-11),
}


def trained(where, choice, policy, kind, make_optimizer, compiled):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    keras.mixed_precision.set_global_policy(policy)
    random = np.random.default_rng(where.ranks.rank)
    x, y = random.random((BATCHES * SHARE, 8, 8, 1)).astype(keras.config.floatx()), random.integers(0, 10, BATCHES * SHARE)
    model = recipes.mnist.build_model(kind, (8, 8, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(where.optimizer(make_optimizer()), loss, metrics=["accuracy"], **compiled)
    jit_compile, counters = JitCompile(choice, where), counters_of(model)
    callbacks = [jit_compile, *where.callbacks()]
    logs = model.fit(x, y, batch_size=SHARE, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history
    assert jit_compile.compiles == ("forward and backward on each replica" if choice == "on" else "")
    return model, logs, counters.read()


def main(engine, directory):
    recipes.mnist.DROPOUT = 0.0  # XLA makes other numbers of the same random bits
    ranks = ENGINES[engine]()
    install(ranks)
    where = Distribution(engine, ("/cpu:0",), None, ranks)
    for name, (*case, tolerance) in CASES.items():
        (a, logs, counts), (b, compiled_logs, compiled_counts) = (trained(where, choice, *case) for choice in ("off", "on"))
        assert counts == compiled_counts, (name, counts, compiled_counts)
        np.testing.assert_allclose(compiled_logs["loss"], logs["loss"], rtol=tolerance, err_msg=name)
        for v, w in zip([*a.variables, *a.optimizer.variables], [*b.variables, *b.optimizer.variables], strict=True):
            plain, found = v.numpy().astype("float64"), w.numpy().astype("float64")
            difference = np.abs(found - plain).max() / max(np.abs(plain).max(), 1e-30)
            assert difference <= tolerance, (name, v.path, difference)
    if ranks.is_chief:
        np.savez(os.path.join(directory, "found.npz"), counts=[compiled_counts.batch, compiled_counts.step])


if __name__ == "__main__":
    main(*sys.argv[1:])
