"""Finding the newest checkpoint that is whole, and going on from it."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import keras

from callbacks import files, state
from callbacks.counters import Counts
from callbacks.errors import InputError
from callbacks.ranks import ranks
from callbacks.template import SUFFIXES, Template


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk that was read in full and found unchanged.

    Args:
        path: where it is.
        step, batch, epoch, samples: the counters stored in it (see `callbacks.counters.Counts`).
        metrics: the newest value of each logged metric when it was made, those of the last validation among them.
    """

    path: str
    step: int
    batch: int
    epoch: int
    samples: int
    metrics: dict[str, float]


def latest_checkpoint(template_or_directory: str | os.PathLike) -> Checkpoint | None:
    """The checkpoint with the highest batch stored in it, of those that verify.

    Damaged and foreign files are passed over, each with a warning that names it.

    Args:
        template_or_directory: a template (`"run/model_batch_at_{batch:05d}.weights.h5"`), the path of one file, or a
            directory, whose files may have been named by several templates.

    Returns:
        The checkpoint, or None where there is none.

    Raises:
        InputError: if the template is not one.

    Example:

    >>> latest = latest_checkpoint("runs/mnist/checkpoints")
    >>> model.load_weights(latest.path)
    """
    for path, _ in newest_first(template_or_directory):
        try:
            return read_whole(path)
        except (files.Damaged, OSError) as error:
            _pass_over(path, error)
    return None


def read_whole(path: str) -> Checkpoint:
    """Reads every byte of a checkpoint, and holds its name against the counters in it.

    Raises:
        callbacks.files.Damaged: if it is not what was written, or its name lies.
        InputError: if it is of a version of the format that this code does not know.
        OSError: if it cannot be read.
    """
    trailer = files.verify(path)
    header = state.read_header(path)
    if [header["counts"][name] for name in ("batch", "step", "epoch", "samples")] != list(dataclasses.astuple(trailer)):
        raise files.Damaged("its trailer and its header name different counters")
    if not Template(header["template"]).is_true_of(path, Counts(**header["counts"])):
        raise files.Damaged(f"its name lies: it holds batch {trailer.batch}")
    return Checkpoint(path, trailer.step, trailer.batch, trailer.epoch, trailer.samples, header["metrics"])


def named_checkpoint(path: str) -> Checkpoint:
    """A checkpoint that somebody names, which has to be there and whole.

    Raises:
        InputError: if it is not.
    """
    try:
        return read_whole(path)
    except (files.Damaged, OSError) as error:
        raise InputError(f"No checkpoint to go on from at {path}: {error}") from None


def restore(model: keras.Model, template_or_directory: str | os.PathLike) -> Checkpoint | None:
    """Gives a model the whole state of the newest checkpoint that verifies.

    Weights, optimizer, seeds, statistics of each replica, and the counters: what `fit` with `resume=True` does at its start.

    Args:
        model: a built and compiled model, of the same shape as the one that was saved.
        template_or_directory: as for `latest_checkpoint`; a file's path restores that file.

    Returns:
        The checkpoint, or None where there is none; then the model is as it was.

    Raises:
        InputError: if the checkpoint is of another model. Nothing is changed then.

    Example:

    >>> checkpoint = restore(model, "runs/mnist/checkpoints/model_batch_at_{batch:05d}.weights.h5")
    >>> print(checkpoint.batch, checkpoint.metrics["loss"])
    """
    checkpoint = find_on_chief(lambda: latest_checkpoint(template_or_directory))
    if checkpoint is not None:
        state.restore(model, checkpoint.path)
    return checkpoint


def find_on_chief(find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that the chief finds, for every rank."""

    def found():
        checkpoint = find()
        return asdict(checkpoint) if checkpoint else None

    plain = ranks().on_chief(found)
    return Checkpoint(**plain) if plain else None


def metrics_of(path: str) -> dict[str, float]:
    """The metrics that a checkpoint tells, without a look at the rest of it."""
    return state.read_header(path)["metrics"]


def newest_first(template_or_directory: str | os.PathLike) -> list[tuple[str, files.Trailer]]:
    """The checkpoints with the counters that their trailers tell, the highest batch first; nothing else of them is read."""
    found = []
    for path in candidates(template_or_directory):
        try:
            found.append((path, files.read_trailer(path), os.path.getmtime(path)))
        except (files.Damaged, OSError) as error:
            _pass_over(path, error)
    found.sort(key=lambda each: (each[1].batch, each[2]), reverse=True)
    return [(path, trailer) for path, trailer, _ in found]


def candidates(template_or_directory: str | os.PathLike) -> list[str]:
    """The paths that a template can have made, or a directory's files with a checkpoint's suffix."""
    text = os.fspath(template_or_directory)
    if os.path.isdir(text):
        entries = [entry.path for entry in os.scandir(text) if not entry.name.startswith(".")]
        return [path for path in entries if path.endswith(SUFFIXES)]
    return Template(text).files()


def _pass_over(path, error):
    warnings.warn(f"Passed over {path}: {error}.", stacklevel=4)
