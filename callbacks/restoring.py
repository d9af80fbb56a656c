"""Finds the newest intact checkpoint and restores it.

Only the restore imports TensorFlow, so `python -m callbacks` starts in a moment.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING

from callbacks import files, stored_header
from callbacks.counts import Counts
from callbacks.errors import InputError, one_line
from callbacks.template import SUFFIXES, Template

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk that was read in full and found unchanged.

    Args:
        path: where it is.
        step, batch, epoch, samples: the counters stored in it (see `callbacks.counters.Counts`).
        metrics: the newest value of each logged metric when it was made, those of the last validation among them.
        finite: False if it contains NaN or infinite values: a resume passes over it. True if the file does not say.
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
    """What a search for the newest checkpoint has found.

    Args:
        checkpoint: the newest one that verifies and is finite; None if there is none.
        not_finite: the path and the batch of each newer one with NaN or infinite values, the newest first.
    """

    checkpoint: Checkpoint | None
    not_finite: list[tuple[str, int]]

    @property
    def passed_over(self) -> str:
        """Names what is not finite, for a message."""
        path, batch = self.not_finite[-1]
        if len(self.not_finite) == 1:
            return f"Passed over {path}: it holds NaN or infinite values."
        return (
            f"Passed over {len(self.not_finite)} checkpoints with NaN or infinite values, of batches {batch} to "
            f"{self.not_finite[0][1]}, the first {path}."
        )


@dataclass(frozen=True)
class Stored:
    """What a checkpoint stores about itself.

    Args:
        template: the last part of the template that made it.
        counts: its counters.
        metrics: the newest value of each logged metric when it was made.
        finite: whether its values are neither NaN nor infinite; True also where the file does not say.
    """

    template: str
    counts: Counts
    metrics: dict[str, float]
    finite: bool

    def is_made_by(self, template: Template, path: str) -> bool:
        """Whether the file stores this template, and the counters that give this path."""
        return self.template == template.last_part and template.makes(path, self.counts)


def latest_checkpoint(template_or_directory: str | os.PathLike) -> Checkpoint | None:
    """The checkpoint that a resume starts from: the one with the highest batch stored in it, of those that verify and are finite.

    Damaged and foreign files are passed over, each with a warning that names it. So are files of another template whose names
    this template matches too: `m_{batch}` and `m_{epoch}` in one directory are two runs, and neither resumes from the other.
    Checkpoints with NaN or infinite values are passed over too, with one warning for all of them; where somebody names such a
    file by its own path, it is returned.

    Args:
        template_or_directory: a template (`"run/model_batch_at_{batch:05d}.weights.h5"`), the path of one file, or a
            directory, whose files may have been named by several templates. `~` is the home directory.

    Returns:
        The checkpoint, or None where there is none.

    Raises:
        InputError: if the template is not one.

    Example:

    >>> latest = latest_checkpoint("runs/mnist/checkpoints")
    >>> model.load_weights(latest.path)
    """
    found = search(template_or_directory, finite_only=not _is_file(template_or_directory))
    if found.not_finite:
        warnings.warn(found.passed_over, stacklevel=2)
    return found.checkpoint


def search(template_or_directory: str | os.PathLike, finite_only: bool = True) -> Search:
    """Looks for the newest checkpoint, and warns of each file that is passed over because it does not verify.

    Args:
        template_or_directory: as for `latest_checkpoint`.
        finite_only: False takes a checkpoint with NaN or infinite values, too.
    """
    template, not_finite = _template_with_fields(template_or_directory), []
    for path, trailer in newest_first(template_or_directory):
        stored = read_stored(path)
        try:
            if template is not None and stored is not None:
                _refuse_another_template(template, stored)
            if finite_only and stored is not None and not stored.finite:
                not_finite.append((path, trailer.batch))
            else:
                return Search(read_whole(path), not_finite)
        except (files.Damaged, OSError) as error:
            _pass_over(path, error)
    return Search(None, not_finite)


def read_whole(path: str) -> Checkpoint:
    """Reads every byte of a checkpoint, and holds its name against the counters in it.

    Raises:
        callbacks.files.Damaged: if it is not what was written, or its name lies.
        InputError: if it is of a version of the format that this code does not know.
        OSError: if it cannot be read.
    """
    trailer = files.verify(path)
    try:
        header = stored_header.read_header(path)
        stored_header.check(path)
    except (InputError, OSError):
        raise
    except Exception as error:  # h5py, zipfile and json raise errors of many classes for what nobody wrote this way
        raise files.Damaged(f"its state cannot be read: {one_line(error)}") from None
    if [header["counts"][name] for name in ("batch", "step", "epoch", "samples")] != list(astuple(trailer)):
        raise files.Damaged("its trailer and its header name different counters")
    if not Template(header["template"]).is_true_of(path, Counts(**header["counts"])):
        raise files.Damaged(f"its name lies: it holds batch {trailer.batch}")
    finite = header.get("finite", True)
    return Checkpoint(path, trailer.step, trailer.batch, trailer.epoch, trailer.samples, header["metrics"], finite)


def named_checkpoint(path: str) -> Checkpoint:
    """A checkpoint that somebody names, which has to be there and whole.

    Raises:
        InputError: if it is not.
    """
    try:
        return read_whole(path)
    except (files.Damaged, OSError) as error:
        raise InputError(f"No checkpoint to go on from at {path}: {one_line(error)}") from None


def restore(model: "keras.Model", template_or_directory: str | os.PathLike) -> Checkpoint | None:
    """Gives a model the whole state of the newest checkpoint that verifies.

    Weights, optimizer, seeds, statistics of each replica, and the counters: what `fit` with `resume=True` does at its start.

    Args:
        model: a built model, of the same shape as the one that was saved. One that is not compiled gets all but the optimizer.
        template_or_directory: as for `latest_checkpoint`; a file's path restores that file, with NaN or infinite values too.

    Returns:
        The checkpoint, or None where there is none; then the model is as it was.

    Raises:
        InputError: if the checkpoint is of another model. Nothing is changed then.

    Example:

    >>> checkpoint = restore(model, "runs/mnist/checkpoints/model_batch_at_{batch:05d}.weights.h5")
    >>> print(checkpoint.batch, checkpoint.metrics["loss"])
    """
    from callbacks import state

    checkpoint = find_on_chief(lambda: latest_checkpoint(template_or_directory))
    if checkpoint is not None:
        state.restore(model, checkpoint.path)
    return checkpoint


def restore_weights(model: "keras.Model", template_or_directory: str | os.PathLike) -> Checkpoint:
    """Gives a model the weights of another run's newest checkpoint, and nothing else of it: a new run begins, at batch 0.

    Args:
        model: a built model, with layers of the same shapes; its optimizer may be another one.
        template_or_directory: as for `restore`.

    Returns:
        The checkpoint.

    Raises:
        InputError: if there is no checkpoint, or it is of another model.
    """
    from callbacks import state

    checkpoint = find_on_chief(lambda: latest_checkpoint(template_or_directory))
    if checkpoint is None:
        raise InputError(f"No checkpoint to take weights from at {os.fspath(template_or_directory)}.")
    state.read_state(checkpoint.path).assign_weights(model)
    return checkpoint


def find_on_chief(find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that the chief finds, for every rank."""
    from callbacks.ranks import ranks

    def found():
        checkpoint = find()
        return asdict(checkpoint) if checkpoint else None

    plain = ranks().on_chief(found)
    return Checkpoint(**plain) if plain else None


def own_checkpoints(template: Template) -> Iterator[tuple[str, files.Trailer, Stored]]:
    """Yields the path, the trailer and the header of each checkpoint that this template made, the highest batch first."""
    for path, trailer in newest_first(template.text):
        stored = read_stored(path)
        if stored is not None and stored.is_made_by(template, path):
            yield path, trailer, stored


def read_stored(path: str) -> Stored | None:
    """Reads what a checkpoint stores about itself; None for a foreign or corrupt file, or one of an unknown format."""
    try:
        header = stored_header.read_header(path)
        return Stored(header["template"], Counts(**header["counts"]), header["metrics"], header.get("finite", True))
    except Exception:  # h5py, zipfile and json raise errors of many classes for a corrupt file
        return None


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
    directory = os.path.expanduser(text)
    if os.path.isdir(directory):
        entries = [entry.path for entry in os.scandir(directory) if not entry.name.startswith(".")]
        return [path for path in entries if path.endswith(SUFFIXES)]
    if not os.path.lexists(directory) and "{" not in text and not text.endswith(SUFFIXES):
        raise InputError(f"There is no such directory: {text}")
    return Template(text).expanded().files()


def _is_file(template_or_directory):
    """Whether somebody names one file, and not all of a template or of a directory."""
    return _template_with_fields(template_or_directory) is None and not os.path.isdir(os.path.expanduser(template_or_directory))


def _template_with_fields(template_or_directory):
    """The template; None for a directory or a file's path, which take checkpoints of any template."""
    text = os.fspath(template_or_directory)
    if os.path.isdir(os.path.expanduser(text)):
        return None
    template = Template(text).expanded()
    return template if template.has_fields else None


def _refuse_another_template(template, stored):
    """Raises if a file stores another template, before the whole file is read."""
    if stored.template != template.last_part:
        raise files.Damaged(f"it was saved by another template, {stored.template}. To resume from it, give its path")


def _pass_over(path, error):
    warnings.warn(f"Passed over {one_line(path)}: {one_line(error)}.", stacklevel=4)
