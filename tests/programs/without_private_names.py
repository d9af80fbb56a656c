"""Trains, crashes and resumes without private names of Keras and TensorFlow: eagerly without each one, compiled without all.

Prints JSON: missing name -> what went wrong; empty if the result equals that of stock Keras without a crash.

python tests/programs/without_private_names.py DIRECTORY
"""

import contextlib
import importlib
import json
import sys
import types

import keras
import numpy as np
import tensorflow as tf

SAVING = "keras.src.saving.saving_lib"
NAMES = {
    SAVING: ("get_attr_skipset", "_save_state", "_load_state", "_serialize_model_as_json", "H5IOStore"),
    "keras.src.saving.keras_saveable": ("KerasSaveable",),
    "keras.src.backend.common.global_state": ("get_global_attribute",),
    "keras.src.random.seed_generator": ("global_seed_generator", "GLOBAL_SEED_GENERATOR"),
    "tensorflow.python.client.device_lib": ("list_local_devices",),
    "tensorflow.python.eager.execute": ("execute",),
    "tensorflow.python.eager.context": ("context",),
    "tensorflow.python.framework.auto_control_deps_utils": ("get_read_write_resource_inputs",),
}
SUFFIXES = (".weights.h5", ".keras")


class Crash(keras.callbacks.Callback):
    """Raises after the third batch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise InterruptedError


def checkpoint_without(missing):
    """Imports `callbacks` without these names, pairs of a module and a name. Returns `GlobalStepCheckpoint`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "callbacks"]:
        del sys.modules[name]
    real = {module: importlib.import_module(module) for module in NAMES}
    for module, original in real.items():
        proxy = types.ModuleType(module)
        vars(proxy).update({name: value for name, value in vars(original).items() if (module, name) not in missing})
        sys.modules[module] = proxy
    try:
        return importlib.import_module("callbacks").GlobalStepCheckpoint  # its modules are imported here, and not earlier
    finally:
        sys.modules.update(real)  # Keras needs them itself


def build(eagerly=False):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.3, seed=1), layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], run_eagerly=eagerly)
    return model


def train(eagerly, *callbacks):
    """Trains on eight batches from the same initial weights. Returns all variables."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = build(eagerly)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 6)).astype("float32"), random.normal(size=(32, 1)).astype("float32")
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def crash_and_resume(eagerly, missing, template):
    checkpoint = checkpoint_without(missing)
    with contextlib.suppress(InterruptedError):
        train(eagerly, checkpoint(template, save_freq=1), Crash())
    resuming = checkpoint(template, save_freq=4, resume=True)
    values = train(eagerly, resuming)
    assert resuming.resumed_from.batch == 3
    loaded = build()
    loaded.load_weights(resuming.newest)  # stock Keras takes the file
    weights = [i for i, v in enumerate(loaded.variables) if "seed" not in v.path]
    for i in weights:
        np.testing.assert_array_equal(loaded.variables[i], values[i])
    return values


def main(directory):
    tf.config.experimental.enable_op_determinism()
    expected, wrong = {eagerly: train(eagerly) for eagerly in (True, False)}, {}
    each = [(module, name) for module, names in NAMES.items() for name in names]
    for number, missing in enumerate([*([one] for one in each), each]):
        eagerly = len(missing) == 1
        for suffix in SUFFIXES[:1] if eagerly else SUFFIXES:
            try:
                values = crash_and_resume(eagerly, missing, f"{directory}/{number}/b{{batch}}{suffix}")
                for a, b in zip(expected[eagerly], values, strict=True):
                    np.testing.assert_array_equal(b, a)
            except Exception as error:
                wrong[f"{missing} {suffix}"] = f"{type(error).__name__}: {error}"
    print(json.dumps(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
