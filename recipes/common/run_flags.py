"""Stores the flags of a run in its checkpoints, and compares them when the run resumes."""

import argparse
import os
from typing import Any

import keras

from callbacks import InputError, counters_of
from callbacks.disk.stored_header import read_header
from callbacks.errors import one_line

_FIXED = ("model", "size", "classes", "vocabulary_size", "seed")
_FIXED_IN_EPOCH = ("global_batch_size", "context", "epochs_per_pass")  # these determine the samples in each batch of an epoch
_NOT_COMPARED = ("resume", "resume_from", "init_from", "checkpoint", "skip_batches")


class RunFlags(keras.callbacks.Callback):
    """Stores the flags in checkpoints. When a run resumes, prints the flags that differ, and refuses changes that would break it.

    All other flags take effect: learning rate, number of epochs, retention.

    Args:
        args: the flags of the recipe.
        prints: whether this rank prints.
    """

    def __init__(self, args: argparse.Namespace, prints: bool):
        super().__init__()
        self._flags = {name: _plain(value) for name, value in vars(args).items() if name not in _NOT_COMPARED}
        self._prints = prints
        self._begins_from = os.path.abspath(args.resume_from) if isinstance(args.resume_from, str) else None
        self._is_compared = False

    def on_train_begin(self, logs=None):
        self._is_compared = False

    def get_state(self) -> dict[str, Any]:
        return {"flags": self._flags, "begins_from": self._begins_from}

    def set_state(self, state: dict[str, Any]) -> None:
        """Compares the flags with those in the checkpoint.

        Raises:
            InputError: if a flag differs that must not change.
        """
        self._begins_from = self._begins_from or state["begins_from"]
        if self._is_compared:
            return
        self._is_compared = True
        stored = state["flags"]
        differ = [name for name, value in self._flags.items() if name in stored and stored[name] != value]
        is_in_epoch = counters_of(self.model).unfinished is not None
        for name in differ:
            if name in _FIXED or (is_in_epoch and name in _FIXED_IN_EPOCH):
                where = "" if name in _FIXED else " in the middle of an epoch"
                raise InputError(
                    f"{_flag(name)} cannot change when a run resumes{where}. Received: {_text(self._flags[name])}; the checkpoint "
                    f"was saved with {_text(stored[name])}. Resume with that value, or start a new run in another --workdir."
                )
        if differ and self._prints:
            changes = (f"{_flag(name)} {_text(stored[name])} -> {_text(self._flags[name])}" for name in differ)
            print(f"changed      {', '.join(changes)}", flush=True)


def begins_from(path: str) -> str | None:
    """Returns the PATH of `--resume PATH` with which a run began; None if it began without one.

    Args:
        path: a checkpoint of the run.
    """
    try:
        return read_header(path)["callbacks"]["RunFlags-1"]["begins_from"]
    except Exception:  # a corrupt file, or a checkpoint without flags
        return None


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _flag(name):
    return f"--{name.replace('_', '-')}"


def _text(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else one_line(":".join(map(str, value)) if isinstance(value, list) else value)
