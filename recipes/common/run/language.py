"""Validation of a language model: bits per token, and text samples."""

import math
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from callbacks import counters_of, event_files
from callbacks.event_files import EventFile
from callbacks.folders import make_folder
from callbacks.hook_attributes import set_by_train_begin
from recipes.common.distribution import Distribution


class Bits(keras.callbacks.Callback):
    """Adds the losses of an epoch, in bits, to the logs for all later callbacks.

    It is not a metric of the model, because a custom metric would keep saved models from loading without this repository.

    Args:
        name: the name in the logs: with `bits_per_byte`, `val_loss` gets a companion `val_bits_per_byte`.
    """

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def on_epoch_end(self, epoch, logs=None):
        self._add_bits(logs)

    def on_train_end(self, logs=None):
        self._add_bits(logs)

    def _add_bits(self, logs):
        for loss in ("loss", "val_loss"):
            if logs and loss in logs:
                logs[loss.replace("loss", self._name)] = logs[loss] / math.log(2)


class TextSamples(keras.callbacks.Callback):
    """Generates a text at each validation, and writes it to TensorBoard at the global batch.

    The text depends only on the weights, the seed and the batch. A validation that is repeated after a restart would generate the
    same text, so it is not written again. Only the chief writes.

    Args:
        distribution: the replicas.
        directory: TensorBoard's directory for the texts; nothing else writes there.
        prompt: `[n]`, the first tokens of the text.
        length: tokens in the text, including the prompt; at most the context of the model.
        decode: converts tokens to text.
        seed: the seed for sampling tokens.
    """

    def __init__(
        self,
        distribution: Distribution,
        directory: str,
        prompt: np.ndarray,
        *,
        length: int,
        decode: Callable[[np.ndarray], str],
        seed: int,
    ):
        super().__init__()
        self._writes, self._directory = distribution.is_chief, directory
        self._prompt, self._length, self._decode, self._seed = prompt[:length], length, decode, seed
        self._continue = tf.function(self._continue_prompt, autograph=False)
        self._written: set[int] = set()  # batches

    _file: EventFile = set_by_train_begin()

    def on_train_begin(self, logs=None):
        if self._writes:
            make_folder(self._directory)
            self._written = event_files.steps(self._directory)
            self._file = EventFile(self._directory, lambda tag: "The model continues the beginning of the validation data.")

    def on_epoch_end(self, epoch, logs=None):
        if self._writes and "val_loss" in (logs or {}):
            batch = counters_of(self.model).read().batch
            if batch not in self._written:
                self._written.add(batch)
                tokens = self._continue(tf.constant(batch, tf.int64)).numpy()
                self._file.text(batch, time.time(), "sample", _as_code(self._decode(tokens)))

    def _continue_prompt(self, batch):
        places = tf.range(self._length)
        prompt = np.zeros(self._length, "int32")
        prompt[: len(self._prompt)] = self._prompt

        def write(place, tokens):
            logits = self.model(tokens[tf.newaxis], training=False)[0, place - 1]  # [vocabulary]
            seed = tf.stack([tf.constant(self._seed, tf.int64) + batch, tf.cast(place, tf.int64)])
            chosen = tf.random.stateless_categorical(tf.cast(logits, tf.float32)[tf.newaxis], 1, seed, dtype=tf.int32)
            return place + 1, tf.where(places == place, chosen[0], tokens)

        state = (tf.constant(len(self._prompt)), tf.constant(prompt))
        return tf.while_loop(lambda place, _: place < self._length, write, state)[1]


def _as_code(text: str) -> str:
    """Returns Markdown that shows a text verbatim."""
    return "\n".join(f"    {line}" for line in text.splitlines())
