"""Finds the newest intact checkpoint and restores it.

TensorFlow is imported only for the restore, so that `python -m callbacks` starts fast.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from callbacks.counts import Counts
from callbacks.disk import files, stored_header
from callbacks.disk.file_identity import identity
from callbacks.disk.listing import NOWHERE, is_mistake, newest_first, of_run, read_failure, skip
from callbacks.disk.stored import Stored, read_stored, read_stored_or_raise
from callbacks.disk.template import Template
from callbacks.disk.writer import finish_writes
from callbacks.errors import CheckpointReadError, InputError, one_line

if TYPE_CHECKING:
    import keras

_REPLACED_AT_MOST = 10  # times while a file is read


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose checksum was verified.

    Args:
        path: the path of the file.
        step, batch, epoch, samples: the counters in the file (`callbacks.counts.Counts`).
        metrics: the newest value of each logged metric at the save, including the last validation.
        finite: False if it contains NaN or infinite values, so that a resume skips it. True if the file does not say.
    """

    path: str
    step: int
    batch: int
    epoch: int
    samples: int
    metrics: dict[str, float]
    finite: bool = True


@dataclass(frozen=True)
class Search:
    """The result of a search for the newest checkpoint.

    Args:
        checkpoint: the newest finite checkpoint that verifies; None if there is none.
        not_finite: path and batch of each newer checkpoint with NaN or infinite values, the newest first.
    """

    checkpoint: Checkpoint | None
    not_finite: list[tuple[str, int]]

    @property
    def skipped(self) -> str:
        """A sentence that names the checkpoints that are not finite."""
        path, batch = self.not_finite[-1]
        if len(self.not_finite) == 1:
            return f"Skipped {path}: it contains NaN or infinite values."
        return (
            f"Skipped {len(self.not_finite)} checkpoints with NaN or infinite values, of batches {batch} to "
            f"{self.not_finite[0][1]}, the first {path}."
        )


def latest_checkpoint(template_or_directory: str | os.PathLike) -> Checkpoint | None:
    """Returns the checkpoint that a resume starts from: the one with the highest batch that verifies and is finite.

    Corrupt and foreign files are skipped, each with a warning that names it. So are files of another template whose names this
    template also matches: `m_{batch}` and `m_{epoch}` in one directory are two runs, and neither resumes from the other.
    Checkpoints with NaN or infinite values are skipped with one warning for all of them, unless the path of such a file is given.
    A file of an unknown version of the format is an error, since a resume from an older checkpoint would replace it.
    A save of this process that is in flight completes first.

    Args:
        template_or_directory: a template (`"run/model_batch_at_{batch:05d}.weights.h5"`), the path of one file, or a
            directory, which may contain files of several templates. `~` is the home directory.

    Returns:
        The checkpoint, or None if there is none.

    Raises:
        InputError: if the template is invalid, a file has an unknown version of the format, or there is no checkpoint but a file
            that this user may not read.
        CheckpointReadError: if there is no checkpoint but a file that the disk fails to read.

    Example:

    >>> latest = latest_checkpoint("runs/mnist/checkpoints")
    >>> model.load_weights(latest.path)
    """
    found = search(template_or_directory, finite_only=not _is_file(template_or_directory))
    if found.not_finite:
        warnings.warn(found.skipped, stacklevel=2)
    return found.checkpoint


def search(template_or_directory: str | os.PathLike, finite_only: bool = True) -> Search:
    """Searches for the newest checkpoint, and warns of each file that does not verify.

    A save of this process that is in flight completes first.

    Args:
        template_or_directory: as for `latest_checkpoint`.
        finite_only: False also accepts checkpoints with NaN or infinite values.

    Raises:
        InputError: if the template is invalid, a file has an unknown version of the format, or there is no checkpoint but a file
            that this user may not read.
        CheckpointReadError: if there is no checkpoint but a file that the disk fails to read.
    """
    template = _template_with_fields(template_or_directory)
    place = _real(template.directory if template else os.path.expanduser(template_or_directory))
    finish_writes(lambda path: _real(path).is_relative_to(place))
    while True:
        failed: dict[str, OSError] = {}
        found = _search(template_or_directory, template, finite_only, failed)
        if found.checkpoint:
            return found
        if all(os.path.lexists(path) for path in failed):  # else a run has deleted old files meanwhile, and has newer ones
            break
    for path, error in failed.items():
        if error.errno not in NOWHERE:
            raise read_failure(path, error)  # a run that began again would replace the files
    return found


def _search(
    template_or_directory: str | os.PathLike, template: Template | None, finite_only: bool, failed: dict[str, OSError]
) -> Search:
    """Searches once, and collects the errors of a disk in `failed`."""
    not_finite: list[tuple[str, int]] = []
    for path, trailer in newest_first(template_or_directory, failed):
        try:
            stored = read_stored_or_raise(path)
            if template is not None and stored is not None:
                _refuse_another_template(template, stored)
            if not finite_only or stored is None or stored.finite:
                return Search(read_verified(path), not_finite)
            not_finite.append((path, trailer.batch))
        except (files.Corrupt, OSError) as error:
            skip(path, error, failed)
    return Search(None, not_finite)


def read_verified(path: str) -> Checkpoint:
    """Reads every byte of a checkpoint, verifies its checksum and compares its name with its counters.

    If a save replaces the file meanwhile, it is read again.

    Raises:
        callbacks.disk.files.Corrupt: if the file was changed, or its name does not match its counters.
        InputError: if the version of its format is unknown.
        OSError: if it cannot be read.
    """
    for _ in range(_REPLACED_AT_MOST):
        with files.open_checkpoint(path) as file:  # open, so that no new file gets its inode
            try:
                return _read_verified(path)
            except (files.Corrupt, OSError):
                if identity(path) == identity(file.fileno()):
                    raise
    return _read_verified(path)


def _read_verified(path: str) -> Checkpoint:
    trailer = files.verify(path)
    try:
        header = stored_header.read_checked_header(path)
    except InputError:
        raise
    except Exception as error:  # h5py, zipfile and json raise errors of many classes for a file that this code did not write
        if isinstance(error, OSError) and error.errno:
            raise
        raise files.Corrupt(f"its state cannot be read: {one_line(error)}") from None
    if [header["counts"][name] for name in ("batch", "step", "epoch", "samples")] != list(astuple(trailer)):
        raise files.Corrupt("its trailer and its header contain different counters")
    if not Template(header["template"]).is_true_of(path, Counts(**header["counts"])):
        raise files.Corrupt(f"its name does not match its content: it contains batch {trailer.batch}")
    finite = header.get("finite", True)
    return Checkpoint(path, trailer.step, trailer.batch, trailer.epoch, trailer.samples, header["metrics"], finite)


def named_checkpoint(path: str) -> Checkpoint:
    """Returns the checkpoint at a path.

    Raises:
        InputError: if there is none, or it is corrupt.
        CheckpointReadError: if the disk fails.
    """
    try:
        return read_verified(path)
    except (files.Corrupt, OSError) as error:
        if isinstance(error, OSError) and not is_mistake(error):
            raise CheckpointReadError.of(path, error) from None
        raise InputError(f"Cannot resume from {path}: {one_line(error)}") from None


def restore(model: "keras.Model", template_or_directory: str | os.PathLike) -> Checkpoint | None:
    """Restores the whole training state of a model from the newest checkpoint that verifies, as `resume=True` does in `fit`.

    The state includes weights, optimizers, seeds, the statistics of each replica, and the counters.

    Args:
        model: a built model with the variables of the saved one. Without `compile`, its optimizer is not restored.
        template_or_directory: as for `latest_checkpoint`. A file's path restores that file, even with NaN or infinite values.

    Returns:
        The checkpoint, or None if there is none. The model is unchanged then.

    Raises:
        InputError: if the checkpoint is of another model. The model is unchanged then.
        CheckpointReadError: if the disk fails. The model is unchanged then.

    Example:

    >>> checkpoint = restore(model, "runs/mnist/checkpoints/model_batch_at_{batch:05d}.weights.h5")
    >>> print(checkpoint.batch, checkpoint.metrics["loss"])
    """
    from callbacks.state import state

    checkpoint = find_on_chief(lambda: latest_checkpoint(template_or_directory))
    if checkpoint is not None:
        state.restore(model, checkpoint.path)
    return checkpoint


def restore_weights(model: "keras.Model", template_or_directory: str | os.PathLike) -> Checkpoint:
    """Loads only the weights of another run's newest checkpoint, so that a new run begins at batch 0.

    Args:
        model: a built model with layers of the same shapes. Its optimizer may be another one.
        template_or_directory: as for `restore`, or the directory of a recipe's run.

    Returns:
        The checkpoint.

    Raises:
        InputError: if there is no checkpoint, or it is of another model. The model is unchanged then.
        CheckpointReadError: if the disk fails. The model is unchanged then.
    """
    from callbacks.state import state

    checkpoint = find_on_chief(lambda: latest_checkpoint(of_run(template_or_directory)))
    if checkpoint is None:
        raise InputError(f"No checkpoint to take weights from at {os.fspath(template_or_directory)}.")
    state.read_state(checkpoint.path).assign_weights(model)
    return checkpoint


def find_on_chief(find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """Returns the checkpoint that the chief finds, on every rank."""
    from callbacks.ranks import ranks

    def found():
        checkpoint = find()
        return asdict(checkpoint) if checkpoint else None

    plain = ranks().on_chief(found)
    return Checkpoint(**plain) if plain else None


def own_checkpoints(template: Template) -> Iterator[tuple[str, files.Trailer, Stored]]:
    """Yields path, trailer and description of each checkpoint that this template named, the highest batch first."""
    for path, trailer in newest_first(template.text, skip_unknown=True):
        stored = read_stored(path)
        if stored is not None and stored.is_made_by(template, path):
            yield path, trailer, stored


def _real(path: str) -> Path:
    """Returns the path without symbolic links, except that of a file, which a save replaces."""
    parent, name = os.path.split(path)
    return Path(os.path.realpath(path)) if os.path.isdir(path) else Path(os.path.realpath(parent), name)


def _is_file(template_or_directory):
    """Returns whether a path names one file, and not a template or a directory."""
    return _template_with_fields(template_or_directory) is None and not os.path.isdir(os.path.expanduser(template_or_directory))


def _template_with_fields(template_or_directory):
    """Returns the template; None for a directory or a file, which may contain checkpoints of any template."""
    text = os.fspath(template_or_directory)
    if "{" not in text or os.path.isdir(os.path.expanduser(text)):
        return None
    template = Template(text).expanded()
    return template if template.has_fields else None


def _refuse_another_template(template, stored):
    """Raises if a file contains another template, before the whole file is read."""
    if stored.template != template.last_part:
        raise files.Corrupt(f"it was saved by another template, {stored.template}. Give its path to resume from it")
