"""Any callback with `get_state` and `set_state` is resumed: it ends as in an uninterrupted run."""

import json
import os
import shutil
import signal

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from journal import EPOCHS, train
from processes import fork_program
from small import BATCHES, Do, fail, fit, names, small_model

from callbacks import GlobalStepCheckpoint, InputError, Preempted, preemption
from callbacks.model.callback_state import check, gather, give_back


class PatientJournal(keras.callbacks.EarlyStopping):
    """A subclass of a Keras callback that adds state."""

    def __init__(self):
        super().__init__("loss", min_delta=1e9, patience=2)
        self.epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        super().on_epoch_end(epoch, logs)

    def get_state(self):
        return self.epochs

    def set_state(self, state):
        self.epochs = state


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The journals at the end of an uninterrupted run."""
    first, second = train(tmp_path_factory.mktemp("whole"))
    assert first.told() == second.told()
    assert first.told()["counts"] == [EPOCHS * BATCHES, EPOCHS, EPOCHS]
    return first.told()


@pytest.mark.slow
@pytest.mark.parametrize("after", [14, 20], ids=["in an epoch", "in the last batch of an epoch"])
def test_a_custom_callback_is_resumed_after_a_kill_at_any_position_in_the_list(tmp_path, uninterrupted, after):
    died = fork_program("killed_journal.py", tmp_path, after)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert names(tmp_path)[-1] == f"b{after}.weights.h5"
    for journal in train(tmp_path):
        assert_told(journal.told(), uninterrupted)


def assert_told(told, expected):
    """The killed process may compute losses with other instructions, so their last bits may differ."""
    assert told["counts"] == expected["counts"]
    np.testing.assert_allclose(told["losses"], expected["losses"], rtol=1e-5)
    assert [epoch for epoch, _ in told["history"]["epochs"]] == [epoch for epoch, _ in expected["history"]["epochs"]]


@pytest.mark.parametrize("execution", [1, 4])
def test_batches_that_a_resume_skips_are_not_counted_twice(tmp_path, execution):
    whole = train(tmp_path / "whole", steps_per_execution=execution)
    with pytest.raises(InterruptedError):
        train(tmp_path / "failed", Do(7 if execution == 1 else 5, fail), steps_per_execution=execution)
    resumed = train(tmp_path / "failed", steps_per_execution=execution)
    assert [each.told() for each in resumed] == [each.told() for each in whole]


class LastLoss(keras.callbacks.Callback):
    """Its state is the loss of the last batch, also at a save before its own `on_train_batch_end`."""

    def __init__(self):
        super().__init__()
        self.loss, self.stored, self.losses, self.announced = 0.0, [], [], []

    def before_save(self, logs):
        self.loss = logs["loss"]
        self.announced.append(self.loss)

    def on_train_batch_end(self, batch, logs=None):
        self.loss = logs["loss"]
        self.losses.append(self.loss)

    def get_state(self):
        self.stored.append(self.loss)
        return self.loss

    def set_state(self, state):
        self.loss = state


def test_a_callback_after_the_checkpoint_may_count_the_batch_before_its_state_is_read(tmp_path):
    before, after = LastLoss(), LastLoss()
    fit(small_model(), before, GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq=4, background=False), after)
    assert len(set(after.stored)) == 4 and after.stored == before.stored  # when training begins, and at batches 4, 8 and 10


def test_a_save_is_announced_with_the_logs_of_its_batch_and_not_after_an_epoch(tmp_path):
    told = LastLoss()
    checkpoint = GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq=4, background=False)
    fit(small_model(), checkpoint, told, epochs=2, validation_split=0.2)  # eight batches an epoch
    assert names(tmp_path) == [f"{batch}.weights.h5" for batch in (12, 16, 4, 8)]
    fit(small_model(), told, GlobalStepCheckpoint(tmp_path / "e{epoch}.weights.h5"))
    assert told.announced == [told.losses[batch - 1] for batch in (4, 8, 12, 16)]


class Ask(keras.callbacks.Callback):
    """Requests a stop in a hook."""

    def __init__(self, hook):
        super().__init__()
        self.seen = 0
        setattr(self, hook, self._ask)

    def _ask(self, *_, logs=None):
        self.seen += 1
        if self.seen == 4:
            preemption.request_stop(75, "by USR1")


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_batch_begin"])
def test_a_stopped_run_ends_like_the_uninterrupted_one(tmp_path, monkeypatch, uninterrupted, hook):
    with pytest.raises(Preempted):
        train(tmp_path, Ask(hook), save_freq=1000)
    assert len(names(tmp_path)) == 1
    monkeypatch.setattr(preemption, "_requested", 0)
    for journal in train(tmp_path, save_freq=1000):
        assert journal.told() == uninterrupted


def test_set_state_comes_after_every_on_train_begin_and_before_the_first_batch(tmp_path):
    hooks = []

    class Notes(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            hooks.append(f"begin {self.name}")

        def on_train_batch_begin(self, batch, logs=None):
            hooks.append("batch")

        def get_state(self):
            return self.name

        def set_state(self, state):
            hooks.append(f"set {state}")

    def notes():
        made = [Notes(), Notes()]
        made[0].name, made[1].name = "a", "b"
        return made

    checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", resume=True)
    fit(small_model(), checkpoint, *notes())
    hooks.clear()
    fit(small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", resume=True), *notes(), epochs=2)
    assert hooks == ["begin a", "begin b", "set a", "set b"] + ["batch"] * (2 * BATCHES)


def test_a_subclass_of_a_keras_callback_keeps_the_state_of_keras_and_its_own(tmp_path):
    for epochs in (1, 10):
        callback = PatientJournal()
        checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", resume=True)
        fit(small_model(), callback, checkpoint, epochs=epochs)
    assert callback.epochs == 3
    assert callback.stopped_epoch == 2  # it has waited for two epochs, one of them in the first run


class Holder(keras.callbacks.Callback):
    """Has any state."""

    def __init__(self, state=None):
        super().__init__()
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


PLAIN = {
    "none": None,
    "numbers": [True, 3, -1.5, float("inf")],
    "text": {"a b": "ä\n", "": ""},
    "like a mark": [{"array": [0, "<f4", [1]]}, {"dict": {}}, {"scalar": 1}, {"array": 1, "b": 2}],
    "arrays": [np.arange(6, dtype="int16").reshape(2, 3), np.ones([3, 0]), np.array(2.5), np.eye(200)],
    "scalars": [np.float64(0.1), np.int8(-3), np.bool_(True)],
    "what HDF5 does not have": [
        np.array([1, 2], ml_dtypes.bfloat16),
        np.array(["a", "bcd"]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.array([1 + 2j]),
        np.arange(3, dtype=">f4"),
    ],
    "not contiguous": np.arange(12).reshape(3, 4)[:, ::2],
}


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_plain_data_is_restored_unchanged(tmp_path, suffix):
    template = tmp_path / f"b{{batch}}{suffix}"
    fit(small_model(), GlobalStepCheckpoint(template), Holder(PLAIN))
    holder = Holder()
    fit(small_model(), GlobalStepCheckpoint(template, resume=True), holder, epochs=2)
    assert_same(holder.state, PLAIN)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
        assert isinstance(found, np.generic) or found.flags.writeable
    else:
        assert found == expected


def test_changes_of_a_callback_after_a_save_do_not_change_the_file():
    holder = Holder({"array": np.zeros(3), "list": [1]})
    states = gather([holder], "on_train_batch_end")
    holder.state["array"][:] = 7
    holder.state["list"].append(2)
    give_back([holder], states, "b1.keras")
    assert_same(holder.state, {"array": np.zeros(3), "list": [1]})


@pytest.mark.parametrize(
    "state, words",
    [
        ({"seen": {1, 2}}, r"state\['seen'\] is of type set"),
        ({"a": [{"b": object()}]}, r"state\['a'\]\[0\]\['b'\] is of type object"),
        ({"a": {3: 4}}, r"state\['a'\] is a dict with the key 3"),
        ({"a": np.array([object()])}, r"state\['a'\] is an array of dtype object"),
        (lambda: 0, r"state is of type function"),
    ],
)
def test_a_state_that_is_not_plain_data_is_refused_before_the_first_batch(tmp_path, state, words):
    model = small_model()
    with pytest.raises(InputError, match=rf"^Holder.get_state\(\) returns what a checkpoint cannot hold: {words}.") as raised:
        fit(model, GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"), Holder(state))
    assert "\n" not in str(raised.value)
    assert int(model.optimizer.iterations.numpy()) == 0 and names(tmp_path) == []


def test_a_tensor_is_refused_with_the_advice_to_make_it_an_array():
    with pytest.raises(InputError, match="turn a tensor into an array"):
        check([Holder([keras.ops.ones(2)])])


def test_runs_resume_from_files_of_format_2_without_the_protocol(tmp_path):
    """These files call the best weights `EarlyStopping-1.best_weights`, and do not store the hook in which they were saved."""
    template, old = tmp_path / "b{batch}.weights.h5", tmp_path / "old.h5"

    def stopping():
        return keras.callbacks.EarlyStopping("loss", patience=50, restore_best_weights=True)

    first = stopping()
    fit(small_model(), first, GlobalStepCheckpoint(template, save_freq=5), epochs=2)
    states = gather([first], "on_train_batch_end")
    shutil.copy(tmp_path / "b15.weights.h5", old)
    with h5py.File(old, "r+") as file:
        group = file["global_step"]
        header = json.loads(group["header"][()].tobytes())
        del header["hook"], header["callbacks"]["EarlyStopping-1"]["best_weights"]
        del group["header"]
        group["header"] = np.frombuffer(json.dumps(header).encode(), "uint8")
        group.move("callbacks/EarlyStopping-1", "callbacks/EarlyStopping-1.best_weights")
    from callbacks.state import state

    found = state.read_state(str(old)).callback_states
    second = stopping()
    give_back([second], found, "b1.keras")
    assert found.hook == "on_train_batch_end"
    assert second.best == found.plain["EarlyStopping-1"]["best"]
    assert [each.shape for each in second.best_weights] == [each.shape for each in states.arrays["EarlyStopping-1"]]


def test_keras_callbacks_have_adapters():
    own = [
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.ModelCheckpoint("a.keras"),
        keras.callbacks.History(),
        keras.callbacks.SwapEMAWeights(),
        keras.callbacks.BackupAndRestore(os.devnull),
    ]
    assert list(gather([*own, keras.callbacks.TerminateOnNaN()], "").plain) == [f"{type(each).__name__}-1" for each in own]
