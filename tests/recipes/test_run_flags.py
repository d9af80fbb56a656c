"""The flags that a recipe stores, and their comparison in a resume."""

import argparse

import keras
import pytest
from compare import assert_same_weights
from small import Do, arrays, fit, small_model

from callbacks import GlobalStepCheckpoint, InputError, latest_checkpoint
from recipes.common.run.initial_weights import InitialWeights
from recipes.common.run_flags import RunFlags, begins_from
from recipes.mnist import parse_args

FLAGS = {
    "epochs": 2,
    "seed": 0,
    "model": "cnn",
    "global_batch_size": 4,
    "learning_rate": 0.1,
    "keep_last": None,
    "deterministic": True,
    "resume_from": True,
}


class Stop(Exception):
    """Ends a fit like a crash."""


def crash():
    raise Stop


def train(directory, *callbacks, prints=True, save_freq=5, **changed):
    """Trains two epochs of ten batches."""
    flags = RunFlags(argparse.Namespace(**{**FLAGS, **changed}), prints)
    checkpoint = GlobalStepCheckpoint(
        str(directory / "b{batch:02d}.weights.h5"), save_freq=save_freq, resume=True, background=False
    )
    fit(small_model(), *callbacks, flags, checkpoint, epochs=2)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two runs: one with a checkpoint at the end of an epoch, and one in the middle."""
    directories = {}
    for batch in (10, 15):
        directories[batch] = tmp_path_factory.mktemp(f"stopped{batch}")
        with pytest.raises(Stop):
            train(directories[batch], Do(batch + 1, crash), save_freq="epoch" if batch == 10 else 5)
        assert latest_checkpoint(directories[batch]).batch == batch
    return directories


@pytest.fixture
def resume(stopped, tmp_path):
    """Resumes a copy of one of the two runs with changed flags."""

    def train_copy(batch, **changed):
        (tmp_path / str(batch)).mkdir()
        for path in stopped[batch].glob("b*"):
            (tmp_path / str(batch) / path.name).write_bytes(path.read_bytes())
        train(tmp_path / str(batch), **changed)

    return train_copy


@pytest.mark.parametrize("batch", [10, 15])
def test_each_flag_that_differs_is_printed_once(resume, capsys, batch):
    resume(batch, epochs=4, learning_rate=0.05, keep_last=3)
    out = capsys.readouterr().out
    assert out == "changed      --epochs 2 -> 4, --learning-rate 0.1 -> 0.05, --keep-last not given -> 3\n"


def test_a_flag_that_was_on_and_is_off_is_printed_so(resume, capsys):
    resume(10, deterministic=False)
    assert capsys.readouterr().out == "changed      --deterministic on -> off\n"


def test_nothing_is_printed_without_a_difference_or_by_other_ranks(resume, capsys):
    resume(10)
    resume(15, prints=False, epochs=4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("batch", [10, 15])
@pytest.mark.parametrize(("changed", "message"), [({"seed": 1}, "--seed"), ({"model": "mlp"}, "--model")])
def test_what_would_break_the_run_is_refused(resume, batch, changed, message):
    (value,) = changed.values()
    with pytest.raises(InputError, match=rf"{message} cannot change when a run resumes\. Received: {value}.*with") as raised:
        resume(batch, **changed)
    assert "\n" not in str(raised.value)


def test_the_global_batch_may_change_only_between_epochs(resume):
    resume(10, global_batch_size=8)
    with pytest.raises(
        InputError, match=r"--global-batch-size cannot change when a run resumes in the middle of an epoch.*with 4\."
    ):
        resume(15, global_batch_size=8)


def test_flags_that_an_older_checkpoint_lacks_are_not_differences(resume, capsys):
    resume(10, new_flag=3)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_stores_where_its_run_began(tmp_path, stopped):
    assert begins_from(str(stopped[10] / "b10.weights.h5")) is None
    train(tmp_path, resume_from=str(stopped[10] / "b10.weights.h5"))
    assert begins_from(str(tmp_path / "b20.weights.h5")) == str(stopped[10] / "b10.weights.h5")
    (tmp_path / "x.weights.h5").write_bytes(b"no checkpoint")
    assert begins_from(str(tmp_path / "x.weights.h5")) is None


def test_initial_weights_are_loaded_once_and_not_after_a_resume(tmp_path):
    source = small_model(keras.optimizers.SGD(0.0))
    fit(source, GlobalStepCheckpoint(str(tmp_path / "source" / "b{batch}.weights.h5")))
    expected = source.get_weights()
    for epochs in (1, 2):
        model = small_model(keras.optimizers.SGD(0.0 if epochs == 1 else 0.1))
        checkpoint = GlobalStepCheckpoint(str(tmp_path / "run" / "b{batch}.weights.h5"), resume=True)
        model.fit(
            *arrays(),
            batch_size=4,
            epochs=epochs,
            verbose=0,
            callbacks=[checkpoint, InitialWeights(tmp_path / "source", checkpoint)],
        )
        if epochs == 1:
            assert (model.get_weights()[0] == expected[0]).all()
    assert checkpoint.resumed_from.batch == 10
    assert (model.get_weights()[0] != expected[0]).all()


def test_initial_weights_and_a_checkpoint_to_resume_from_contradict_each_other(tmp_path):
    with pytest.raises(InputError, match=r"--init-from starts a new run.*Give only one"):
        parse_args(["--workdir", str(tmp_path), "--init-from", "a.keras", "--resume", "b.keras"])


@pytest.mark.slow
def test_one_command_resumes_an_older_checkpoint_in_a_new_directory_and_then_the_new_run(recipe, tmp_path):
    """The first run has later checkpoints; the new run begins at an older one, is stopped, and ends with the same weights."""
    flags = ["--epochs", 20, "--model", "mlp", "--save-freq", 11]
    assert recipe(*flags, "--workdir", tmp_path / "old").finish()[0] == 0
    older = tmp_path / "old" / "checkpoints" / "model_batch_at_00011.weights.h5"
    command = [*flags, "--resume", older, "--workdir", tmp_path / "new"]
    first = recipe(*command)
    new = tmp_path / "new" / "checkpoints"
    first.kill_when((new / "model_batch_at_00022.weights.h5").exists)
    code, out, errors = recipe(*command).finish()
    assert code == 0, errors
    assert "begins       from" in out and "00011.weights.h5: batch 11" not in out
    assert f"changed      --workdir {tmp_path}/old -> {tmp_path}/new" not in out  # printed by the first process, which was killed
    assert min(path.name for path in new.glob("m*")) == "model_batch_at_00022.weights.h5"
    for batch in (22, 33, 440):
        name = f"model_batch_at_{batch:05d}.weights.h5"
        assert_same_weights(tmp_path / "old" / "checkpoints" / name, new / name)
