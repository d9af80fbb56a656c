"""A recipe that is killed and restarted ends like an uninterrupted one."""

import pytest
from compare import assert_same_weights
from processes import written_or_in_writing

EPOCHS, BATCHES_PER_EPOCH = 3, 22
PLANNED = EPOCHS * BATCHES_PER_EPOCH
name = "model_batch_at_{:05d}.weights.h5".format


def moments(checkpoints):
    """Returns moments as conditions: during tracing, during a write, at the end of an epoch, in the middle of one, and late."""

    def written(batch):
        return lambda: (checkpoints / name(batch)).exists()

    return [
        checkpoints.exists,
        written_or_in_writing(checkpoints / name(10)),
        written(22),
        written(30),
        written_or_in_writing(checkpoints / name(50)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("strategy, every", [("single", 1), ("mirrored", 2)])
def test_kills_and_restarts_end_with_the_same_weights(recipe, tmp_path, strategy, every):
    flags = ["--epochs", EPOCHS, "--strategy", strategy]
    flags += ["--virtual-devices", 2] if strategy == "mirrored" else []
    uninterrupted = recipe(*flags, "--save-freq", 1000, "--workdir", tmp_path / "uninterrupted")
    checkpoints = tmp_path / "killed" / "checkpoints"
    command = [*flags, "--save-freq", 1, "--workdir", tmp_path / "killed"]
    for moment in moments(checkpoints)[::every]:
        recipe(*command).kill_when(moment)
    code, out, errors = recipe(*command).finish()
    assert code == 0, errors
    assert f"trained on   {PLANNED} batches, {PLANNED * 64} samples, {PLANNED} steps" in out

    code, _, errors = uninterrupted.finish()
    assert code == 0, errors
    last = f"checkpoints/{name(PLANNED)}"
    assert_same_weights(tmp_path / "uninterrupted" / last, tmp_path / "killed" / last)
    visible = {path.name for path in checkpoints.iterdir() if not path.name.startswith(".")}
    assert visible == {name(batch) for batch in range(1, PLANNED + 1)}


@pytest.mark.slow
def test_a_finished_run_that_is_restarted_trains_nothing_and_says_so(recipe, tmp_path):
    flags = ["--epochs", 1, "--model", "mlp", "--workdir", tmp_path]
    assert recipe(*flags).finish()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    code, out, _ = recipe(*flags).finish()
    assert code == 0
    assert "Nothing left to train" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()} == before


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run(recipe, tmp_path):
    flags = ["--model", "mlp", "--save-freq", "epoch"]
    uninterrupted = recipe(*flags, "--epochs", 3, "--workdir", tmp_path / "uninterrupted")
    assert recipe(*flags, "--epochs", 2, "--workdir", tmp_path / "longer").finish()[0] == 0
    code, out, _ = recipe(*flags, "--epochs", 3, "--workdir", tmp_path / "longer").finish()
    assert code == 0
    assert "batch 44, epoch 2" in out
    assert uninterrupted.finish()[0] == 0
    last = f"checkpoints/{name(66)}"
    assert_same_weights(tmp_path / "uninterrupted" / last, tmp_path / "longer" / last)
