"""SIGKILL in the middle of an epoch, on every kind of data: the run gets the next batch, or a warning says why it cannot."""

import json

import pytest
from killed_data import EPOCHS, KILLS, KINDS, STEPS
from processes import run_program

pytestmark = pytest.mark.slow

DOUBTED = {"generator", "PyDataset", "shuffled without a seed"}  # already printed by the first process
NEW_ORDER = {"shuffled without a seed", "images of a directory"}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Returns kind -> name -> the record of a training."""
    done = run_program("killed_data.py", tmp_path_factory.mktemp("trainings"))
    found = {}
    for training in map(json.loads, done.stdout.splitlines()):
        found.setdefault(training["kind"], {})[training["name"]] = training
    assert set(found) == set(KINDS), done.stderr
    return found


def noted(training, what):
    return [value for name, value in training["notes"] if name == what]


def said_before_the_first_batch(training):
    names = [name for name, _ in training["notes"]]
    before = training["notes"][: names.index("batch")]
    return [text for name, text in before if name == "said" and "order" in text]


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_the_run_gets_the_next_batch_or_a_warning(trainings, kind):
    stock, first, second, last = (trainings[kind][name] for name in ("stock", "first", "second", "last"))
    assert [each["code"] for each in (stock, first, second, last)] == [0, -9, -9, 0]
    batches = noted(stock, "batch")
    assert len(batches) == STEPS * EPOCHS
    for training, end in ((first, KILLS[0]), (second, KILLS[1]), (last, len(batches))):
        (begin,) = noted(training, "from")
        assert (begin > 0) is (training is not first)
        seen = noted(training, "batch")
        assert len(seen) == end - begin
        assert seen == batches[begin:end] or kind in NEW_ORDER
        said = said_before_the_first_batch(training)
        assert bool(said) is (kind in DOUBTED or (kind in NEW_ORDER and begin > 0)), said
    assert noted(last, "weight") == noted(stock, "weight") or kind in NEW_ORDER
