"""A training with NaN: the last checkpoint without NaN is kept and found, and the run resumes from it."""

import math

import ml_dtypes
import numpy as np
import pytest
from small import BATCH, BATCHES, Do, arrays, fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.disk.stored_header import read_header
from callbacks.saving.retention import Kept, to_delete
from callbacks.state.finite import first_not_finite
from callbacks.state.snapshot import Group

TEMPLATE = "b{batch:02d}.weights.h5"
SPOILT = 7  # the batch whose samples hold a NaN


def spoilt_arrays():
    x, y = arrays()
    x[(SPOILT - 1) * BATCH, 0] = math.nan
    return x, y


def fit_spoilt(model, *callbacks, **options):
    """Trains on ten batches, one of which contains a NaN, in the same order each time."""
    return model.fit(*spoilt_arrays(), batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks), **options)


@pytest.fixture(scope="module")
def gone_bad(tmp_path_factory):
    """A run with a checkpoint after every second batch; those of batches 8 and 10 contain NaN."""
    directory = tmp_path_factory.mktemp("bad")
    with pytest.warns(
        UserWarning, match=r"b08\.weights\.h5 contains NaN or infinite values, first in \S*dense\S*/kernel"
    ) as warned:
        fit_spoilt(small_model(), GlobalStepCheckpoint(str(directory / TEMPLATE), save_freq=2))
    assert len([each for each in warned if "contains NaN" in str(each.message)]) == 1
    return directory


@pytest.mark.parametrize("keep_last", [1, 2, 3, 4])
def test_retention_keeps_the_newest_finite_one_beside_what_the_rules_keep(keep_last):
    present = [Kept(f"b{batch}", batch, finite=batch <= 50) for batch in (40, 50, 60, 70, 80)]
    kept = {each.path for each in present} - set(to_delete(present, keep_last=keep_last))
    assert kept == {f"b{batch}" for batch in (40, 50, 60, 70, 80)[-keep_last:]} | {"b50"}


def test_a_run_that_goes_bad_never_deletes_its_last_good_checkpoint(tmp_path):
    with pytest.warns(UserWarning, match="contains NaN"):
        fit_spoilt(small_model(), GlobalStepCheckpoint(str(tmp_path / TEMPLATE), save_freq=1, keep_last=2))
    assert names(tmp_path) == ["b06.weights.h5", "b09.weights.h5", "b10.weights.h5"]


def test_a_good_checkpoint_after_a_bad_one_is_the_last_good_one(tmp_path):
    """After a callback has repaired the values, they are finite again, and the checkpoint before the NaN may be deleted."""
    model = small_model("sgd")
    weights = model.get_weights()
    spoil, repair = (Do(at, lambda w=w: model.set_weights(w)) for at, w in ((3, [w * math.nan for w in weights]), (7, weights)))
    with pytest.warns(UserWarning, match="contains NaN"):
        fit(model, spoil, repair, GlobalStepCheckpoint(str(tmp_path / TEMPLATE), save_freq=1, keep_last=2))
    assert names(tmp_path) == ["b09.weights.h5", "b10.weights.h5"]


def test_the_newest_checkpoint_is_the_newest_good_one(gone_bad):
    with pytest.warns(UserWarning, match=r"Skipped 2 checkpoints with NaN or infinite values, of batches 8 to 10, the first"):
        found = latest_checkpoint(gone_bad)
    assert (found.batch, found.finite) == (6, True)


def test_a_resume_starts_from_the_last_good_one_and_says_how_to_get_past_the_nan(gone_bad, tmp_path):
    for path in gone_bad.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    checkpoint, model = GlobalStepCheckpoint(str(tmp_path / TEMPLATE), save_freq=2, resume=True), small_model()
    with pytest.warns(UserWarning, match=r"^Skipped 2.*resumes from batch 6\. .*again: .*--skip-batches 7:8") as warned:
        fit(model, checkpoint, shuffle=False)
    assert "\n" not in str(warned[0].message)
    assert checkpoint.resumed_from.batch == 6
    assert latest_checkpoint(tmp_path).batch == BATCHES  # the repaired data has replaced what was bad
    assert np.isfinite(model.get_weights()[0]).all()


def test_where_no_checkpoint_is_good_a_resume_is_refused(gone_bad, tmp_path):
    bad = gone_bad / "b10.weights.h5"
    (tmp_path / bad.name).write_bytes(bad.read_bytes())
    with pytest.raises(
        InputError, match=r"No checkpoint to resume from: those of .* contain NaN or infinite values, from batch 10"
    ):
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / TEMPLATE), resume=True))
    with pytest.warns(UserWarning, match=r"Skipped .*b10\.weights\.h5: it contains NaN or infinite values"):
        assert latest_checkpoint(tmp_path) is None
    assert names(tmp_path) == ["b10.weights.h5"]


def test_a_bad_checkpoint_is_restored_if_its_path_is_given(gone_bad):
    model = small_model()
    found = restore(model, gone_bad / "b08.weights.h5")
    assert (found.batch, found.finite) == (8, False)
    assert np.isnan(model.get_weights()[0]).any()


def test_files_without_the_mark_count_as_finite(gone_bad, tmp_path, monkeypatch):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / TEMPLATE)))
    header = read_header(str(tmp_path / "b10.weights.h5"))
    assert header.pop("finite") is True
    monkeypatch.setattr("callbacks.disk.stored_header.read_header", lambda path: header)
    found = latest_checkpoint(tmp_path)
    assert (found.batch, found.finite) == (10, True)


def test_list_shows_which_checkpoints_are_good(gone_bad, capsys):
    assert main(["list", str(gone_bad)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = rows[0].index("finite")
    assert [(row[0], row[at]) for row in rows[1:]] == [("2", "yes"), ("4", "yes"), ("6", "yes"), ("8", "NO"), ("10", "NO")]


class Values:
    """A snapshot of one variable, `w`, in Keras's part of the file or in ours."""

    def __init__(self, value, *, updated=True, metric=False, beside=False):
        self.header = {
            "variables": {"w": [list(value.shape), str(value.dtype), "dense/kernel"]},
            "metrics_variables": ["w"] if metric else [],
            "optimizers": {"optimizer": {"built": True, "updates": ["w"] if updated else []}},
        }
        self.groups = [] if beside else [Group("dense", "dense", {"0": value}, False, {"0": "w"})]
        self.beside = {"w": [value]} if beside else {}


DTYPES = ["float32", "float64", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 1 << 18, (1 << 18) + 1])
def test_one_nan_anywhere_is_detected_in_every_type(dtype, place, beside):
    value = np.ones([2, (1 << 17) + 1], dtype)
    assert first_not_finite(Values(value, beside=beside)) is None
    value.reshape(-1)[place] = math.nan
    assert first_not_finite(Values(value, beside=beside)) == "dense/kernel"


def test_infinite_values_count_only_in_what_an_optimizer_updates():
    value = np.array([1.0, -math.inf], "float32")
    assert first_not_finite(Values(value)) == "dense/kernel"
    assert first_not_finite(Values(value, updated=False)) is None  # a mask, for example
    assert first_not_finite(Values(value * math.nan, updated=False)) == "dense/kernel"


def test_running_metrics_and_whole_numbers_do_not_count():
    assert first_not_finite(Values(np.array(math.nan, "float32"), metric=True)) is None
    for dtype in ("int32", "uint8", "bool", ml_dtypes.int4):
        assert first_not_finite(Values(np.ones([3], dtype))) is None
