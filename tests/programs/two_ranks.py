"""Checks that two ranks run together for test_ranks.py: each check is a function, and each rank writes its results to a JSON file.

python tests/programs/two_ranks.py ENGINE DIRECTORY

Every training is compared with the same training on one replica, which each rank runs alone on the complete batches.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from callbacks import CheckpointWriteError, GlobalStepCheckpoint, InputError, counters_of
from callbacks.model.attached import attached
from callbacks.ranks import RanksDiffer, install
from recipes.common.data import Arrays, validation_data
from recipes.common.distribution import Distribution, engine_ranks
from recipes.common.distribution.rank_synchronization import AveragedBatches
from recipes.common.distribution.setup import ENGINES

BATCHES, BATCH = 8, 8
optimizers = keras.optimizers
FINDINGS: dict[str, Callable[[Distribution, Distribution], object]] = {}


def check(function):
    FINDINGS[function.__name__] = function
    return function


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((BATCHES * BATCH, 4)), rng.random((BATCHES * BATCH, 1))


def batches_for(world, x, y):
    """Returns the rank's share of each batch, or the complete batch for one replica."""
    share = BATCH // world.replicas
    rank = world.ranks.rank if world.ranks else 0
    mine = np.arange(len(x)).reshape(-1, world.replicas, share)[:, rank].ravel()
    return tf.data.Dataset.from_tensor_slices((x[mine], y[mine])).batch(share)


def dense(dtype=None):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh", dtype=dtype), layers.Dense(1, kernel_regularizer="l2", dtype=dtype)]
    )


def embedding(dtype=None):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    pick = layers.Lambda(lambda x: tf.cast(x * 10, "int32"))
    return keras.Sequential(
        [keras.Input((4,)), pick, layers.Embedding(10, 3, dtype=dtype), layers.Flatten(), layers.Dense(1, dtype=dtype)]
    )


def train(world, make_optimizer, *, build=dense, data=None, epochs=2, callbacks=(), loss="mse", **compile_options):
    x, y = data or samples()
    model = build()
    model.compile(world.optimizer(make_optimizer()), loss, **compile_options)
    history = model.fit(batches_for(world, x, y), epochs=epochs, verbose=0, callbacks=[*world.callbacks(), *callbacks])
    return model, history


def difference(one, other):
    values = zip(one.trainable_variables, other.trainable_variables, strict=True)
    return max(float(np.abs(a.numpy().astype("float64") - b.numpy().astype("float64")).max()) for a, b in values)


TRAININGS: dict[str, tuple[Callable, dict]] = {
    "sgd": (lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True), {}),
    "clipped": (lambda: optimizers.Adam(0.01, global_clipnorm=0.01), {}),
    "scheduled": (lambda: optimizers.AdamW(optimizers.schedules.CosineDecay(0.01, 10)), {}),
    "accumulated": (lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2), {}),
    "averaged weights": (lambda: optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3), {}),
    "several steps per execution": (lambda: optimizers.Adam(0.01), {"steps_per_execution": 4}),
    "eager": (lambda: optimizers.Adam(0.01), {"run_eagerly": True}),
    # Plain SGD, because Keras's Adam squares each repeated row of a sparse gradient separately, even on one replica.
    "sparse gradients": (lambda: optimizers.SGD(0.1), {"build": embedding}),
}


@check
def training_equals_one_replica(two, one):
    found = {}
    for name, (make_optimizer, options) in TRAININGS.items():
        (a, of_two), (b, of_one) = (train(world, make_optimizer, **options) for world in (two, one))
        losses = np.abs(np.array(of_two.history["loss"]) - of_one.history["loss"]).max()
        found[name] = [difference(a, b), float(losses)]
    return found


@check
def any_type_is_averaged(two, one):
    rank = two.ranks.rank
    sent = [
        *(tf.constant([1.0 + 2 * rank], dtype) for dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64)),
        None,
        tf.IndexedSlices(tf.constant([[4.0]]), tf.constant([rank]), tf.constant([2, 1])),
    ]
    received = two.ranks.average(sent, "any_type")
    return [None if r is None else [r.dtype.name, np.asarray(r, "float64").ravel().tolist()] for r in received]


@check
def jit_compile_is_switched_off(two, one):
    model, _ = train(two, lambda: optimizers.SGD(0.1), jit_compile=True)
    plain, _ = train(one, lambda: optimizers.SGD(0.1))
    return {"is on": model.jit_compile, "difference": difference(model, plain)}


@check
def overflow_on_one_rank_skips_the_step_on_all(two, one):
    keras.config.set_floatx("float32")
    keras.mixed_precision.set_global_policy("mixed_float16")
    x, y = (part.astype("float32") for part in samples())
    x[2 * BATCH + BATCH - 1] = 1e38  # in the third batch, on the last rank
    model, _ = train(two, lambda: optimizers.Adam(0.01), data=(x, y), epochs=1)
    keras.config.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")
    counts = counters_of(model).read()
    return {
        "optimizer": type(model.optimizer).__name__,
        "batches": counts.batch,
        "steps": counts.step,
        "finite": all(np.isfinite(v.numpy()).all() for v in model.variables),
        "sums": [float(v.numpy().astype("float64").sum()) for v in model.optimizer.variables],
    }


@check
def nan_on_one_rank_stops_all(two, one):
    x, y = samples()
    x[2 * BATCH + BATCH - 1] = np.nan
    model, _ = train(two, lambda: optimizers.SGD(0.1), data=(x, y), callbacks=[keras.callbacks.TerminateOnNaN()])
    return counters_of(model).read().batch


@check
def validation_is_exact_and_steers_alike(two, one):
    rng = np.random.default_rng(3)
    x, y = rng.random((37, 4)), rng.random((37, 1))
    found = {}
    for world in (two, one):
        keras.utils.set_random_seed(1)
        model = dense()
        model.compile(world.optimizer(optimizers.SGD(0.05)), "mse", metrics=["mae", keras.metrics.RootMeanSquaredError()])
        stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.004)
        history = model.fit(
            batches_for(world, *samples()), epochs=30, verbose=0, callbacks=[*world.callbacks(), stop],
            validation_data=validation_data(Arrays(x, y), world, global_batch_size=8),
        )  # fmt: skip
        found["two ranks" if world is two else "one replica"] = history.history
    return found


@check
def a_saved_model_names_the_plain_optimizer(two, one):
    model, _ = train(two, lambda: optimizers.Adam(0.01), loss=keras.losses.MeanSquaredError())
    if two.is_chief:
        model.save("saved.keras")
    configs = [model.optimizer.get_config(), optimizers.Adam(0.01).get_config()]
    return [{key: value for key, value in config.items() if key != "name"} for config in configs]


@check
def every_rank_starts_from_the_chiefs_state(two, one):
    """Each rank created its model with another seed."""

    def build():
        keras.utils.set_random_seed(two.ranks.rank)
        layers = keras.layers
        return keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dropout(0.5), layers.Dense(1)])

    model, _ = train(two, lambda: optimizers.Adam(0.01), build=build)
    return [v.numpy().ravel().tolist() for v in [*model.variables, *model.optimizer.variables]]


@check
def a_rank_that_uses_its_own_gradients_is_found(two, one):
    def make_optimizer():
        optimizer = optimizers.SGD(0.1)
        if two.ranks.rank == 1:
            plain = optimizer.apply
            averaged = two.optimizer(optimizer).apply

            def both(grads, variables=None):
                averaged([tf.zeros_like(g) for g in grads], variables)
                plain(grads, variables)

            two_optimizer = optimizer
            two_optimizer.apply = both
        return optimizer

    return error_of(lambda: train(World(two), make_optimizer))


@check
def a_rank_that_drifts_later_is_found_at_a_save(two, one):
    class Drift(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4 and two.ranks.rank == 1:
                bias = self.model.layers[-1].bias
                bias.assign_add(tf.fill(bias.shape, tf.constant(1e-9, bias.dtype)))

    callbacks = [Drift(), GlobalStepCheckpoint("drift/{batch}.weights.h5", save_freq=2)]
    error = error_of(lambda: train(two, lambda: optimizers.SGD(0.1), callbacks=callbacks))
    two.ranks.wait()
    return error


class World(Distribution):
    """Keeps an optimizer that already averages."""

    def __init__(self, two):
        super().__init__(two.name, two.devices, None, two.ranks)

    def optimizer(self, optimizer):
        return optimizer if attached(optimizer, AveragedBatches) else super().optimizer(optimizer)


@check
def what_would_let_ranks_differ_is_refused(two, one):
    def train_on(x, y):
        model = dense()
        model.compile(two.optimizer(optimizers.SGD(0.1)), "mse")
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0, callbacks=two.callbacks())

    def plain_optimizer():
        model = dense()
        model.compile(optimizers.SGD(0.1), "mse")
        model.fit(batches_for(two, *samples()), verbose=0, callbacks=two.callbacks())

    def synchronized():
        return keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(synchronized=True), keras.layers.Dense(1)])

    x, y = samples()
    end = 32 - 4 * two.ranks.rank
    endless = tf.data.Dataset.from_generator(lambda: iter([]), output_types=(tf.float64, tf.float64), output_shapes=((4,), (1,)))

    def unknown_length():
        model = dense()
        model.compile(two.optimizer(optimizers.SGD(0.1)), "mse")
        model.fit(endless.batch(4), verbose=0, callbacks=two.callbacks())

    return {
        "another number of batches": error_of(lambda: train_on(x[:end], y[:end])),
        "plain optimizer": error_of(plain_optimizer),
        "synchronized BatchNormalization": error_of(lambda: train(two, lambda: optimizers.SGD(0.1), build=synchronized)),
        "unknown length": error_of(unknown_length),
    }


@check
def plain_data_goes_between_ranks(two, one):
    rank, count = two.ranks.rank, 3 * two.ranks.rank
    mine = {"text": "x" * 10 ** (4 * rank), "array": tf.ones([count], tf.bfloat16).numpy(), "pair": (rank, None)}
    of_chief = two.ranks.broadcast({"array": np.arange(3.0)} if two.is_chief else object())
    return {
        "gathered": [
            [len(each["text"]), str(each["array"].dtype), each["array"].size, each["pair"]] for each in two.ranks.gather(mine)
        ],
        "broadcast": of_chief["array"].tolist(),
        "returned on the chief": two.ranks.on_chief(lambda: {"path": "a", "sizes": [1, 2]}),
    }


@check
def what_the_chief_raises_reaches_all_ranks(two, one):
    errors = [
        InputError("wrong"), CheckpointWriteError("no space"), RanksDiffer("differ"), ValueError("value"), RuntimeError("running"),
        FileNotFoundError(2, "No such file", "a"), OSError(18, "Invalid cross-device link", "a", None, "b"),
        OSError("plain"), KeyError("key"), UnicodeDecodeError("ascii", b"x", 0, 1, "reason"),
    ]  # fmt: skip

    def fail(error):
        raise error

    return [error_of(lambda error=error: two.ranks.on_chief(lambda: fail(error))) for error in errors]


@check
def a_pickle_in_place_of_a_message_is_refused(two, one):
    class Trap:
        def __reduce__(self):
            return os.mkdir, ("unpickled",)

    right = engine_ranks.encode
    pickled = pickle.dumps(Trap())
    found = {}
    for name, sent in (
        ("alone", pickled),
        ("behind a head", right(None)[:8] + bytes([0] * 7 + [len(pickled)] + [0] * 8) + pickled),
    ):
        engine_ranks.encode = right if two.is_chief else lambda value, sent=sent: sent  # type: ignore[misc]
        found[name] = error_of(lambda: two.ranks.gather("hello"))
    engine_ranks.encode = right
    found["run"] = os.path.exists("unpickled")
    return found


def error_of(act):
    try:
        act()
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def main(engine, directory):
    os.chdir(directory)
    keras.config.set_floatx("float64")
    ranks = ENGINES[engine]()
    install(ranks)
    two, one = Distribution(engine, ("/cpu:0",), None, ranks), Distribution("single", ("/cpu:0",))
    found = {name: function(two, one) for name, function in FINDINGS.items()}
    with open(f"found-{ranks.rank}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
