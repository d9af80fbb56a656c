"""Trains as standard input says: where to save, how far to train, and which system calls fail.

LD_PRELOAD=io_errors.so python tests/programs/io_errors_run.py

Each line of standard input is a task in JSON: `{"template": TEMPLATE, "batches": N, "fault": TEXT_FOR_SHIM_SET}` with other
arguments of the callback, and is answered by a line `{"error": TEXT_OR_NULL, "type": CLASS, "seen": N, "from": BATCH_OR_NULL,
"changed": WHETHER_THE_MODEL_IS_ANOTHER_THAN_BEFORE}`.
"""

import ctypes
import faulthandler
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from callbacks import GlobalStepCheckpoint

BATCH = 4


def build():
    """Three large arrays, of 160 KiB each, and some small ones."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((6,)), layers.Dense(160), layers.Dropout(0.2), layers.Dense(256), layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def values(model):
    """Returns the bytes of all variables of the model and of its optimizer, in their order."""
    return [variable.numpy().tobytes() for variable in (*model.variables, *model.optimizer.variables)]


def main():
    """Executes tasks until there are no more. All tasks use one model, which each task restores from its newest checkpoint."""
    faulthandler.enable()
    shim = ctypes.CDLL(None)
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    model = build()
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        task = json.loads(line)
        x, y = (np.random.default_rng(n).normal(size=(task["batches"] * BATCH, n)).astype("float32") for n in (6, 1))
        options = {"save_freq": 2, "resume": True, **task.get("options", {})}
        checkpoint = GlobalStepCheckpoint(task["template"], **options)
        error, before = None, values(model)
        assert shim.shim_set(task["fault"].encode()) == 0, task
        try:
            model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[checkpoint])
        except Exception as caught:
            error = caught
        answer = {"error": error and str(error), "type": error and type(error).__name__, "seen": shim.shim_seen()}
        answer["from"] = checkpoint.resumed_from and checkpoint.resumed_from.batch
        answer["changed"] = values(model) != before
        shim.shim_set(b"")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
