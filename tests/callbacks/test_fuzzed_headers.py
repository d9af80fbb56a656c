"""Any part of a header is replaced by any kind of value, in a file that verifies: each reader answers in one line or exactly."""

import contextlib
import random
import shutil

import pytest
from fuzzed import VALUES, Stopped, assert_answers, header_of, parts, train

from callbacks.counting import long_loops

SEED, FEW, MANY = 7, 8, 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with all kinds of state, which ended after batch 15, in the middle of its second epoch."""
    directory = tmp_path_factory.mktemp("fuzzed")
    with contextlib.suppress(Stopped):
        train(directory, epochs=2, stop_at=16)
    return directory


@pytest.fixture
def answers(trained, tmp_path, monkeypatch):
    """Checks the answers for some changes: `(part, value)` each."""
    monkeypatch.setattr(long_loops, "_MEASURED", 0.1)

    def check(changes):
        for number, (part, value) in enumerate(changes):
            directory = tmp_path / str(number)
            shutil.copytree(trained, directory)
            (directory / "checkpoints" / "b10.weights.h5").unlink()
            (directory / "checkpoints" / "b5.weights.h5").unlink()
            assert_answers(directory, directory / "checkpoints" / "b15.weights.h5", part, value)

    return check


def changes(trained):
    """Returns about 3000 changes, in random order."""
    header = header_of(trained / "checkpoints" / "b15.weights.h5")
    every = [(part, value) for part in parts(header) for value in VALUES]
    return random.Random(SEED).sample(every, len(every))


def test_some_changes(trained, answers):
    answers(changes(trained)[:FEW])


@pytest.mark.slow
def test_many_changes(trained, answers):
    answers(changes(trained)[FEW : FEW + MANY])
