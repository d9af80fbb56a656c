"""Two ranks train like one replica under each engine, and stop with a clear message if they cannot."""

import json
import sys
import zipfile

import keras
import numpy as np
import pytest
from bare_ranks import run_ranks

EXACT = 1e-12
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(engine, tmp_path_factory):
    return tmp_path_factory.mktemp(f"two_ranks_{engine}")


@pytest.fixture(scope="module")
def found(engine, directory):
    """The results of both ranks in all checks of two_ranks.py."""
    for code, _, errors in run_ranks(2, "tests/programs/two_ranks.py", engine, directory, engine=engine):
        assert code == 0, errors
    return [json.loads((directory / f"found-{rank}.json").read_text()) for rank in range(2)]


def of_both(found, check):
    one, other = (each[check] for each in found)
    assert one == other
    return one


@pytest.mark.parametrize(
    "training",
    [
        "sgd", "clipped", "scheduled", "accumulated", "averaged weights", "several steps per execution", "eager",
        "sparse gradients",
    ],
)  # fmt: skip
def test_two_ranks_train_as_one_replica(found, training):
    weights, losses = of_both(found, "training_equals_one_replica")[training]
    assert weights < EXACT
    assert losses < EXACT


def test_gradients_of_any_type_are_averaged_and_sparse_ones_too(found):
    *of_types, none, sparse = of_both(found, "any_type_is_averaged")
    assert of_types == [[dtype, [2.0]] for dtype in ("float16", "bfloat16", "float32", "float64")]
    assert none is None
    assert sparse == ["float32", [2.0, 2.0]]


def test_jit_compile_is_turned_off_even_if_requested(found):
    jit = of_both(found, "jit_compile_is_switched_off")
    assert not jit["is on"]
    assert jit["difference"] < EXACT


def test_overflow_on_one_rank_skips_the_step_on_all(found):
    overflow = of_both(found, "overflow_on_one_rank_skips_the_step_on_all")
    assert overflow["optimizer"] == "LossScaleOptimizer"
    assert (overflow["batches"], overflow["steps"]) == (8, 7)
    assert overflow["finite"]


def test_nan_on_one_rank_stops_all_at_the_same_batch(found):
    assert of_both(found, "nan_on_one_rank_stops_all") == 3


def test_validation_covers_all_ranks_and_early_stopping_decides_alike_on_each(found):
    logs = of_both(found, "validation_is_exact_and_steers_alike")
    two, one = logs["two ranks"], logs["one replica"]
    assert 2 < len(one["val_loss"]) < 30
    assert two.keys() == one.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-12, err_msg=name)


def test_a_saved_model_names_the_plain_optimizer_and_loads_without_horovod(found, directory):
    saved, plain = of_both(found, "a_saved_model_names_the_plain_optimizer")
    assert saved == plain
    with zipfile.ZipFile(directory / "saved.keras") as archive:
        assert b"orovod" not in archive.read("config.json")
    model = keras.models.load_model(directory / "saved.keras")
    assert type(model.optimizer) is keras.optimizers.Adam
    assert "horovod.tensorflow" not in sys.modules


def test_every_rank_starts_with_the_state_of_the_chief(found):
    assert len(of_both(found, "every_rank_starts_from_the_chiefs_state")) > 5


def test_a_rank_that_applies_its_own_gradients_stops_the_run_at_the_first_batch(found):
    error = of_both(found, "a_rank_that_uses_its_own_gradients_is_found")
    assert error.startswith(
        "RanksDiffer: After the first batch, the values of rank 1 differ from those of the other ranks, first in "
    )
    assert "kernel" in error


def test_a_rank_that_drifts_later_stops_the_run_at_the_save_after(found):
    error = of_both(found, "a_rank_that_drifts_later_is_found_at_a_save")
    assert error.startswith("RanksDiffer: At batch 6, the values of rank 1 differ from those of the other ranks, first in ")
    assert "bias" in error


@pytest.mark.parametrize(
    "what, error",
    [
        ("another number of batches", "The chief has 8 batches in an epoch, rank 1 has 7."),
        ("plain optimizer", "does not average over the ranks. Compile the model with distribution.optimizer"),
        ("synchronized BatchNormalization", "does not work across processes"),
        ("unknown length", "Pass steps_per_epoch to fit."),
    ],
)
def test_setups_in_which_ranks_would_differ_are_refused_before_training(found, what, error):
    received = of_both(found, "what_would_let_ranks_differ_is_refused")[what]
    assert received.startswith("InputError: ")
    assert error in received


def test_ranks_exchange_plain_data_of_any_length(found):
    received = of_both(found, "plain_data_goes_between_ranks")
    assert received["gathered"] == [[1, "bfloat16", 0, [0, None]], [10_000, "bfloat16", 3, [1, None]]]
    assert received["broadcast"] == [0.0, 1.0, 2.0]
    assert received["returned on the chief"] == {"path": "a", "sizes": [1, 2]}


def test_what_the_chief_raises_reaches_all_ranks(found):
    chief, other = (each["what_the_chief_raises_reaches_all_ranks"] for each in found)
    known = [
        "InputError: wrong",
        "CheckpointWriteError: no space",
        "RanksDiffer: differ",
        "ValueError: value",
        "RuntimeError: running",
        "FileNotFoundError: [Errno 2] No such file: 'a'",
        "OSError: [Errno 18] Invalid cross-device link: 'a' -> 'b'",
        "OSError: plain",
    ]
    assert chief[: len(known)] == other[: len(known)] == known
    assert chief[len(known) :] == [
        "KeyError: 'key'", "UnicodeDecodeError: 'ascii' codec can't decode byte 0x78 in position 0: reason",
    ]  # fmt: skip
    assert other[len(known) :] == [f"RuntimeError: The chief raised {error}" for error in chief[len(known) :]]


def test_a_pickle_instead_of_a_message_of_a_rank_is_refused_and_not_executed(found):
    received = of_both(found, "a_pickle_in_place_of_a_message_is_refused")
    assert received["alone"].startswith("ValueError: Not a message of plain data: it begins with ")
    assert received["behind a head"] == "ValueError: Not a message of plain data: its JSON part cannot be read."
    assert not received["run"]
