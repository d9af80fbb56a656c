"""A callback that records every hook in its state, and a short training with two of them."""

import json
from typing import Any

import keras
import numpy as np
from small import arrays, fit, small_model

from callbacks import GlobalStepCheckpoint

EPOCHS = 3


class Journal(keras.callbacks.Callback):
    """Records every hook in state of all kinds."""

    def on_train_begin(self, logs=None):
        self.batches = self.epochs = self.validations = 0
        self.losses = np.zeros(0)
        self.history: dict[str, Any] = {"epochs": [], "last": None}

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs += 1

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self.losses = np.append(self.losses, logs["loss"])
        self.history["last"] = np.float32(logs["loss"])

    def on_test_end(self, logs=None):
        self.validations += 1

    def on_epoch_end(self, epoch, logs=None):
        self.history["epochs"].append([epoch, logs["val_loss"]])

    def get_state(self):
        return {
            "counts": (self.batches, self.epochs, self.validations),
            "losses": self.losses,
            "history": self.history,
        }

    def set_state(self, state):
        self.batches, self.epochs, self.validations = state["counts"]
        self.losses, self.history = state["losses"], state["history"]

    def told(self):
        """The state as JSON."""
        state = self.get_state()
        return json.loads(json.dumps(state | {"losses": self.losses.tolist()}, default=float))


def train(directory, *after, save_freq=1, **options):
    """Trains with a journal before the checkpoint and one after it. Returns both."""
    keras.utils.set_random_seed(0)
    first, second = Journal(), Journal()
    checkpoint = GlobalStepCheckpoint(directory / "b{batch:02d}.weights.h5", save_freq=save_freq, resume=True, background=False)
    fit(small_model(**options), first, checkpoint, second, *after, epochs=EPOCHS, validation_data=arrays(2), shuffle=False)
    return first, second
