"""A process that trains repeatedly while system calls fail (`io_errors_run.py`), and checks of the files that it leaves."""

import json
import shutil
import subprocess
import sys

import pytest
from compare import arrays
from processes import PROGRAM_ENVIRONMENT, PROGRAMS
from small import names

from callbacks import files

SUFFIXES = (".weights.h5", ".keras")
BATCHES = 8  # of a run; it saves every second, and the save of batch 4 meets the fault


class Trainer:
    """A process that trains repeatedly, with system calls that fail."""

    def __init__(self, library, directory, suffix):
        self.directory, self.suffix = directory, suffix
        self._said = open(directory / "said", "w+")  # noqa: SIM115, it stays open as long as the process runs
        self._process = subprocess.Popen(
            [sys.executable, PROGRAMS / "io_errors_run.py"],
            env={**PROGRAM_ENVIRONMENT, "LD_PRELOAD": str(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def train(self, directory, fault="", batches=BATCHES, **options):
        """Trains from the newest checkpoint. Returns the answer of the process; a process that dies is a failure."""
        task = {"template": str(directory / self.name("{batch:02d}")), "batches": batches, "fault": fault, "options": options}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._said.seek(0)
            pytest.fail(f"the training died with {self._process.wait()} at {fault!r}: {self._said.read()[-3000:]}")
        return json.loads(answer)

    def name(self, batch):
        return f"b{batch if isinstance(batch, str) else format(batch, '02d')}{self.suffix}"

    def close(self):
        self._process.kill()
        self._process.communicate()
        self._said.close()


def assert_true(directory, trainer):
    """Checks that every visible file verifies and equals, bit for bit, that of the run without faults."""
    for name in names(directory):
        batch = int(name[1:3])
        assert files.verify(str(directory / name)).batch == batch
        assert arrays(directory / name) == trainer.expected[name], name


def begin(trainer, directory):
    """Returns a directory with the checkpoint of batch 2."""
    directory.mkdir(exist_ok=True)
    shutil.copy(trainer.whole / trainer.name(2), directory)
    return directory


def all_names(trainer):
    return [trainer.name(batch) for batch in (2, 4, 6, 8)]
