"""The directory of a run's checkpoints. One run at a time writes there, and only while it is the same directory."""

import contextlib
import errno
import functools
import itertools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from callbacks.counts import Counts
from callbacks.disk import files
from callbacks.disk.file_identity import identity
from callbacks.disk.folders import flush_folder, make_folder
from callbacks.disk.listing import candidates
from callbacks.disk.lock import Lock, LockLost
from callbacks.disk.stored import read_stored
from callbacks.disk.template import Template
from callbacks.disk.writer import finish_writes
from callbacks.errors import DirectoryLost, InputError, one_line
from callbacks.model.training_loop import Loop

_NAMES_CHECKED = 100_000  # when training begins; they take half a second


class CheckpointDirectory:
    """The directory of a template. One run claims it when training begins.

    Args:
        template: the names of the checkpoints.
        loop: the training loop that writes there.
    """

    def __init__(self, template: Template, loop: Loop):
        self._template, self._loop = template, loop
        self._path = template.directory
        self._lock = Lock(template.text, template.directory)
        self._identity: tuple[int, int] | None = None  # of the claimed directory

    def claim(self) -> None:
        """Creates the directory, takes its lock, and removes unfinished files of dead processes.

        Raises:
            InputError: if the directory cannot be written to, or another run writes to the template.
        """
        finish = functools.partial(finish_writes, self._template.matches)
        _check_writable(self._path)
        finish()
        self._lock.acquire(self._loop, finish)
        self._identity = identity(self._path)
        files.sweep(self._template, self._lock.taken_from)

    def check(self) -> None:
        """Checks that this run may still write here. Call it before each change in the directory.

        Raises:
            DirectoryLost: if the directory is gone, or another directory has its name.
            LockLost: if another run has taken the lock, or the lock cannot be read.
        """
        try:
            self._lock.check()
        except LockLost:
            # The lock decides, since a file system that was unmounted and mounted again may have another identity.
            if identity(self._path) != self._identity:
                raise DirectoryLost(
                    f"the directory {self._path} was deleted, moved or unmounted while training ran. Nothing was written in its "
                    "place. Bring it back, then start the run again"
                ) from None
            raise

    def check_names(self, saves: Iterable[Counts]) -> None:
        """Checks that no planned save takes the name of another template's checkpoint. Call it when training begins.

        `check_name` checks each name again at its save.

        Args:
            saves: the counters at the saves that are planned: batch, epoch and replicas.

        Raises:
            InputError: if one does: `m_{batch}` and `m_{epoch}` give equal names.
        """
        counters = set(self._template.counters)
        if not counters or counters - {"batch", "epoch"}:
            return  # each save replaces the same file, or the names are not known yet
        present = set(candidates(self._template.text))
        for counts in itertools.islice(saves, _NAMES_CHECKED) if present else ():
            path = self._template.format(counts, {})
            if path in present and (other := self._other_template(path)):
                raise InputError(
                    f"{path} is a checkpoint of another template, {other}, and {self._template.last_part} gives batch "
                    f"{counts.batch} the same name. Use another directory or template."
                )

    def check_name(self, path: str) -> None:
        """Checks that a save replaces no checkpoint of another template, which may have come since training began.

        Raises:
            FileExistsError: if there is one.
        """
        if self._template.counters and (other := self._other_template(path)):
            why = f"another template, {other}, has named a checkpoint so, which stays. Use another directory"
            raise FileExistsError(errno.EEXIST, why)

    def _other_template(self, path: str) -> str | None:
        """Returns the template of a checkpoint for messages; None if it is this one, or there is no checkpoint."""
        stored = read_stored(path) if os.path.lexists(path) else None
        return None if stored is None or stored.template == self._template.last_part else one_line(stored.template)

    def make_parents(self, path: str) -> None:
        """Creates the directories between this one and a checkpoint, if their names in the template have counters.

        Their entries are flushed, so they survive a crash of the machine.

        Raises:
            OSError: if one cannot be created. This directory itself is never created again.
        """
        parent = self._path
        for part in Path(path).relative_to(self._path).parts[:-1]:
            folder = os.path.join(parent, part)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            flush_folder(parent)
            parent = folder

    def release(self) -> None:
        """Releases the lock and ends the training loop. Repeated calls do nothing."""
        self._lock.release()
        self._loop.end()


def _check_writable(directory: str) -> None:
    try:
        make_folder(directory)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"Checkpoints cannot be written to {directory}: {error.strerror}. Give a directory that can be written to."
        ) from None
