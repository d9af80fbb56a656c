"""`GlobalStepCheckpoint`: checkpoints named by the global step, from which training goes on exactly."""

import os
import tempfile
import time

import keras

from callbacks import files, state
from callbacks.counters import Counts, counters_of
from callbacks.errors import CheckpointWriteError, InputError
from callbacks.restoring import Checkpoint, existing_file, latest_checkpoint, newest_first
from callbacks.template import Template


class GlobalStepCheckpoint(keras.callbacks.Callback):
    """Saves the whole state of training every so many global batches, under names that count them over all restarts.

    ```python
    model.fit(data, epochs=20, callbacks=[
        GlobalStepCheckpoint("run/model_batch_at_{batch:05d}.weights.h5", save_freq=50, keep_last=3, resume=True),
    ])
    ```

    writes `run/model_batch_at_00050.weights.h5`, `run/model_batch_at_00100.weights.h5`, and so on. Stock Keras loads each of
    them. Started again after a crash, the same lines go on from the newest whole file, in the middle of an epoch too, and
    end with the weights that the uninterrupted run would have had. Data that can seek (`Counters.position`) starts at the
    right sample; of any other data, the batches of the epoch that are already trained on are read and dropped.

    Args:
        filepath: the template of the files' names (`callbacks.template.Template`), with the fields `{batch}` `{epoch}`
            `{samples}` `{step}` `{replicas}`. A template without a counter is one file, replaced at each save.
        verbose: 0 for silence, 1 for a line at each save.
        save_weights_only: None lets the suffix decide. As in Keras, True needs `.weights.h5` and False `.keras`.
        save_freq: `"epoch"`, or after how many global batches; under `steps_per_execution` at the first boundary at or
            after each multiple.
        keep_last: how many of the newest files to keep; None keeps all.
        resume: True goes on from the newest checkpoint that verifies, if there is one; a path goes on from that file.

    Raises:
        InputError: if an argument is not one of these, or an unusable directory or a checkpoint of another model is found
            when training begins. Nothing has been written then.
        CheckpointWriteError: during training, if a checkpoint cannot be written.
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        *,
        verbose: int = 0,
        save_weights_only: bool | None = None,
        save_freq: int | str = "epoch",
        keep_last: int | None = None,
        resume: bool | str | os.PathLike = False,
    ):
        super().__init__()
        self.template = Template(os.fspath(filepath))
        _check_arguments(self.template, save_weights_only, save_freq, keep_last)
        self.verbose = verbose
        self.save_freq = save_freq
        self.keep_last = keep_last
        self.resume = resume
        self.resumed_from: Checkpoint | None = None
        self._next_save = 0
        self._last_saved: Counts | None = None
        self._last_path: str | None = None
        self._epoch_save_is_due = False

    def set_model(self, model):
        super().set_model(model)
        self._counters = counters_of(model)

    def on_train_begin(self, logs=None):
        _prepare_directory(os.path.dirname(self.template.text))
        self._counters.batches_per_epoch = self.params.get("steps")
        self._resume()
        self._last_saved = self._counters.read() if self.resumed_from else None
        self._plan_next_save()
        self._counters.when_trained(self._finish)

    def on_epoch_begin(self, epoch, logs=None):
        self._save_if_epoch_ended()
        self._counters.begin_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self._counters.logs = logs or {}
        if self._next_save and self._counters.reached(self._next_save):
            self._save()
            self._plan_next_save()

    def on_epoch_end(self, epoch, logs=None):
        self._counters.end_epoch()
        self._counters.logs = logs or {}
        # What other callbacks do in their own on_epoch_end belongs to the state, whatever their place in the list.
        self._epoch_save_is_due = self.save_freq == "epoch"

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None
        if self.model.optimizer is None:  # then Keras finalizes nothing, and nobody has called this
            self._finish()

    def _resume(self):
        if not self.resume:
            return
        if self.resume is True:
            self.resumed_from = latest_checkpoint(self.template.text)
        else:
            self.resumed_from = latest_checkpoint(existing_file(os.fspath(self.resume)))
        if self.resumed_from:
            state.restore(self.model, self.resumed_from.path)
            self.model._initial_epoch = self._counters.epoch_to_begin

    def _plan_next_save(self):
        if self.save_freq != "epoch":
            self._next_save = (self._counters.read().batch // self.save_freq + 1) * self.save_freq

    @property
    def newest(self) -> str | None:
        """The path of the checkpoint saved last, or gone on from."""
        if self._last_path:
            return self._last_path
        return self.resumed_from.path if self.resumed_from else None

    def _finish(self):
        self._save_if_epoch_ended()
        if self._counters.reached((self._last_saved.batch if self._last_saved else 0) + 1):
            self._save()

    def _save_if_epoch_ended(self):
        if self._epoch_save_is_due:
            self._epoch_save_is_due = False
            self._save()

    def _save(self):
        began = time.monotonic()
        snapshot = state.take(self.model)
        counts = snapshot.counts
        path = self.template.format(counts)
        trailer = files.Trailer(counts.batch, counts.step, counts.epoch, counts.samples)
        try:
            files.commit(path, trailer, lambda temporary: state.write(self.model, snapshot, temporary))
        except OSError as error:
            raise CheckpointWriteError(f"Could not write the checkpoint {path}: {error}") from error
        self._last_saved, self._last_path = counts, path
        self._delete_old()
        if self.verbose:
            size, took = os.path.getsize(path) / 1e6, time.monotonic() - began
            print(f"\nBatch {counts.batch}: saved {path} ({size:.1f} MB in {took:.2f} s)")

    def _delete_old(self):
        if self.keep_last is not None:
            for path in newest_first(self.template.text)[self.keep_last :]:
                os.unlink(path)


def _check_arguments(template, save_weights_only, save_freq, keep_last):
    weights_only = template.suffix == ".weights.h5"
    if save_weights_only not in (None, weights_only):
        raise InputError(
            f"The suffix decides what is saved: .weights.h5 for weights only, .keras for the whole model. "
            f"Received: save_weights_only={save_weights_only} with {template.text!r}"
        )
    if save_freq != "epoch" and not _is_positive(save_freq):
        raise InputError(f"save_freq is 'epoch' or a number of batches, 1 or more. Received: {save_freq!r}")
    if keep_last is not None and not _is_positive(keep_last):
        raise InputError(f"keep_last is a number of files, 1 or more, or None for all. Received: {keep_last!r}")
    if keep_last is not None and not template.counters:
        raise InputError(
            f"keep_last needs names that differ: a template with a counter, such as model_batch_at_{{batch:05d}}. "
            f"Received: {template.text!r}"
        )


def _is_positive(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _prepare_directory(directory):
    directory = directory or "."
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"Checkpoints cannot be written to {directory}: {error.strerror}. Give a directory that can be written to."
        ) from None
