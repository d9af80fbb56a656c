"""The directory that a run's checkpoints go to: one run at a time writes there, and only while it is the same directory."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from callbacks import files
from callbacks.errors import InputError
from callbacks.file_identity import identity
from callbacks.folders import flush_folder, make_folder
from callbacks.lock import Lock, LockLost
from callbacks.template import Template
from callbacks.training_loop import Loop


class DirectoryLost(RuntimeError):
    """The directory was deleted, moved or unmounted while training ran."""


class CheckpointDirectory:
    """The directory of a template, which one run claims when training begins.

    Args:
        template: the names of the checkpoints.
    """

    def __init__(self, template: Template):
        self._template = template
        self._path = template.directory
        self._lock = Lock(template.text, template.directory)

    def claim(self, loop: Loop, finish: Callable[[], None]) -> None:
        """Makes the directory, takes its lock, and removes what dead processes have left half written.

        Args:
            loop: the training loop that writes there.
            finish: waits for writes of this process that are in flight there.

        Raises:
            InputError: if the directory cannot be written to, or another run writes to the template.
        """
        _check_writable(self._path)
        finish()
        self._lock.acquire(loop, finish)
        self._identity = identity(self._path)
        files.sweep(self._template, self._lock.taken_from)

    def check(self) -> None:
        """To be called before anything in the directory is changed.

        Raises:
            DirectoryLost: if it is no longer there, or another directory has its name.
            LockLost: if another run has taken over, or the lock cannot be read.
        """
        try:
            self._lock.check()
        except LockLost:
            # The lock says more than the identity: a file system that was unmounted and mounted again may have another one.
            if identity(self._path) != self._identity:
                raise DirectoryLost(
                    f"the directory {self._path} was deleted, moved or unmounted while training ran. Nothing was written in its "
                    "place. Bring it back, then start the run again"
                ) from None
            raise

    def make_parents(self, path: str) -> None:
        """Makes the directories between this one and a checkpoint, where the template has counters in their names.

        Their entries are flushed, so that they outlast a crash of the machine.

        Raises:
            OSError: if one cannot be made; this directory itself is never made again.
        """
        parent = self._path
        for part in Path(path).relative_to(self._path).parts[:-1]:
            folder = os.path.join(parent, part)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            flush_folder(parent)
            parent = folder

    def release(self) -> None:
        """Gives the lock back; more than once does no harm."""
        self._lock.release()


def _check_writable(directory: str) -> None:
    try:
        make_folder(directory)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"Checkpoints cannot be written to {directory}: {error.strerror}. Give a directory that can be written to."
        ) from None
