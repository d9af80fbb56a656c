"""The flags of a run, which its checkpoints store: a resume compares its own with them."""

import argparse
import os
from typing import Any

import keras

from callbacks import InputError, counters_of
from callbacks.stored_header import read_header

_FIXED = ("model", "size", "classes", "vocabulary_size", "seed")
_FIXED_IN_EPOCH = ("global_batch_size", "context", "epochs_per_pass")  # they decide which samples an epoch's batches have
_NOT_COMPARED = ("resume", "resume_from", "init_from", "checkpoint", "skip_batches")


class RunFlags(keras.callbacks.Callback):
    """Stores the flags in checkpoints. When a run resumes, prints those that differ, and refuses those that would break it.

    All others apply: learning rate, number of epochs, retention.

    Args:
        args: the recipe's flags.
        speaks: whether this rank prints.
    """

    def __init__(self, args: argparse.Namespace, speaks: bool):
        super().__init__()
        self._flags = {name: _plain(value) for name, value in vars(args).items() if name not in _NOT_COMPARED}
        self._speaks = speaks
        self._begins_from = os.path.abspath(args.resume_from) if isinstance(args.resume_from, str) else None
        self._is_compared = False

    def on_train_begin(self, logs=None):
        self._is_compared = False

    def get_state(self) -> dict[str, Any]:
        return {"flags": self._flags, "begins_from": self._begins_from}

    def set_state(self, state: dict[str, Any]) -> None:
        """Compares the flags of the run that saved the checkpoint.

        Raises:
            InputError: if one differs that must not.
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
                    f"{_flag(name)} cannot change when a run resumes{where}. Received: {_text(self._flags[name])}, and a "
                    f"checkpoint of a run with {_text(stored[name])}. Resume with that, or begin another run in another --workdir."
                )
        if differ and self._speaks:
            changes = (f"{_flag(name)} {_text(stored[name])} -> {_text(self._flags[name])}" for name in differ)
            print(f"changed      {', '.join(changes)}", flush=True)


def begins_from(path: str) -> str | None:
    """Returns the checkpoint that a run began with by `--resume PATH`; None if there was none.

    Args:
        path: a checkpoint of the run.
    """
    try:
        return read_header(path)["callbacks"]["RunFlags-1"]["begins_from"]
    except Exception:  # a corrupt or foreign file, or one of a run without flags
        return None


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _flag(name):
    return f"--{name.replace('_', '-')}"


def _text(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else ":".join(map(str, value)) if isinstance(value, list) else str(value)
