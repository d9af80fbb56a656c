"""Any part of a header is replaced by any kind of value, in a file that verifies: each reader answers in one line or exactly."""

import contextlib
import itertools
import random
import shutil

import pytest
from fuzzed import VALUES, Stopped, assert_answers, header_of, parts, train

from callbacks.counting import long_loops

SEED, FEW = 7, 8


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
    """Returns a change of every part, in random order, in which each value replaces several parts."""
    every = list(parts(header_of(trained / "checkpoints" / "b15.weights.h5")))
    assert len(every) > 2 * len(VALUES)
    random.Random(SEED).shuffle(every)
    return list(zip(every, itertools.cycle(VALUES), strict=False))


def test_some_changes(trained, answers):
    answers(changes(trained)[:FEW])


@pytest.mark.slow
def test_a_change_of_every_other_part(trained, answers):
    answers(changes(trained)[FEW:])
