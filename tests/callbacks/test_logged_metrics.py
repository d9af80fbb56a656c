"""Logs may contain any value. If stock `ModelCheckpoint` works, ours writes the same files."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from curves import curves
from small import arrays, fit, names, small_model

from callbacks import BatchAwareCheckpoint, GlobalStepCheckpoint, GlobalStepTensorBoard, InputError, latest_checkpoint

VALUES = {
    "np.float32": np.float32(0.25),
    "np.int64": np.int64(3),
    "a tensor": tf.constant(0.25),
    "a bfloat16 tensor": tf.constant(0.25, "bfloat16"),
    "a vector": np.arange(3.0),
    "a vector tensor": tf.range(3.0),
    "a matrix": np.eye(2),
    "a string": "fine",
    "None": None,
    "a dict": {"deep": {"er": 1.0}},
    "an object": object(),
}


class Logs(keras.callbacks.Callback):
    """Adds a value to the logs of each epoch."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.value(epoch) if callable(self.value) else self.value


def score(epoch):
    return 0.5 + 0.125 * epoch


def both(tmp_path, filename, *others, model=small_model, after=False, **options):
    """Returns the names that stock and ours write in two epochs, with `others` before or after them in the list."""
    found = []
    for kind in (keras.callbacks.ModelCheckpoint, GlobalStepCheckpoint):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        directory = tmp_path / kind.__name__
        directory.mkdir()
        own = kind(str(directory / filename), save_weights_only=True, **options)
        listed = [own, *others] if after else [*others, own]
        fit(model(), *listed, epochs=2, validation_data=arrays(), shuffle=False)
        found.append(sorted(str(path.relative_to(directory)) for path in directory.rglob("*.h5") if path.name[0] != "."))
    return found


def test_any_value_in_the_logs_is_accepted_as_by_stock(tmp_path):
    stock, ours = both(tmp_path, "e{epoch}.weights.h5", *(Logs(kind, value) for kind, value in VALUES.items()))
    assert stock == ours == ["e1.weights.h5", "e2.weights.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in VALUES if kind not in ("None", "an object", "a matrix")])
def test_any_value_in_a_name_is_written_as_stock_writes_it(tmp_path, kind):
    stock, ours = both(tmp_path, "e{epoch}-{own}.weights.h5", Logs("own", VALUES[kind]))
    assert stock == ours and len(ours) == 2
    assert latest_checkpoint(str(tmp_path / "GlobalStepCheckpoint" / "e{epoch}-{own}.weights.h5")).batch == 20


@pytest.mark.parametrize("kind", ["np.float32", "a tensor", "a vector"])
def test_best_only_compares_numbers_and_treats_other_values_like_stock(tmp_path, kind):
    options = {"monitor": "own", "mode": "max", "save_best_only": True}
    stock, ours = both(tmp_path, "e{epoch}.weights.h5", Logs("own", VALUES[kind]), **options)
    assert stock == ours and len(ours) == (2 if kind == "a vector" else 1)


def test_keep_best_ignores_values_that_are_not_numbers(tmp_path):
    values = [np.arange(3.0), 0.5, "text"]
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "e{epoch}.weights.h5"), monitor="own", mode="max", keep_best=1)
    fit(small_model(), Logs("own", lambda epoch: values[epoch]), checkpoint, epochs=3)
    assert names(tmp_path) == ["e2.weights.h5", "e3.weights.h5"]  # the best, and the newest


@pytest.mark.slow
@pytest.mark.parametrize("metrics", [("top-5", "a/b", "f 1", "acc@1"), ("m\u00e4x", "1st", "50%")], ids=str)
def test_metrics_with_any_names_may_be_in_a_file_name(tmp_path, metrics):
    def classifier():
        return small_model(metrics=[keras.metrics.MeanAbsoluteError(name=name) for name in metrics])

    template = "-".join(["e{epoch}", *(f"{{{name}:.3f}}-{{val_{name}:.3f}}" for name in metrics)]) + ".weights.h5"
    stock, ours = both(tmp_path, template, model=classifier)
    assert stock == ours and len(ours) == 2 and not any("/" in each for each in ours)
    resumed = GlobalStepCheckpoint(str(tmp_path / "GlobalStepCheckpoint" / template), resume=True, keep_last=1)
    fit(classifier(), resumed, epochs=3, validation_data=arrays())
    assert resumed.resumed_from.batch == 20
    assert len(names(tmp_path / "GlobalStepCheckpoint")) == 1


def test_the_learning_rate_that_a_callback_of_keras_logs_may_be_in_a_name(tmp_path):
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch)
    stock, ours = both(tmp_path, "e{epoch}-{learning_rate:.2f}.weights.h5", schedule)
    assert stock == ours == ["e1-1.00.weights.h5", "e2-0.50.weights.h5"]


def test_an_element_of_a_vector_may_be_in_a_name(tmp_path):
    stock, ours = both(tmp_path, "e{epoch}-{own[1]:.2f}.weights.h5", Logs("own", np.arange(3.0)))
    assert stock == ours == ["e1-1.00.weights.h5", "e2-1.00.weights.h5"]


@pytest.mark.parametrize("after", [False, True])
def test_a_metric_of_a_callback_may_be_in_a_name(tmp_path, after):
    template = "e{epoch}-{val_f1:.3f}.weights.h5"
    if after:  # stock knows only what was logged before it
        checkpoint = GlobalStepCheckpoint(str(tmp_path / template))
        fit(small_model(), checkpoint, Logs("val_f1", score), epochs=2, validation_data=arrays())
        assert names(tmp_path) == ["e1-0.500.weights.h5", "e2-0.625.weights.h5"]
    else:
        stock, ours = both(tmp_path, template, Logs("val_f1", score))
        assert stock == ours == ["e1-0.500.weights.h5", "e2-0.625.weights.h5"]


def test_saves_by_batch_contain_the_newest_value_that_a_callback_has_logged(tmp_path):
    """The first saves wait for the value, as for a validation."""
    template = str(tmp_path / "b{batch:02d}-{f1:.3f}.weights.h5")
    fit(small_model(), Logs("f1", score), GlobalStepCheckpoint(template, save_freq=4), epochs=2)
    assert names(tmp_path) == [f"b{batch}-0.500.weights.h5" for batch in (10, 12, 16, 20)]
    resumed = GlobalStepCheckpoint(template, save_freq=3, resume=True)
    fit(small_model(), Logs("f1", score), resumed, epochs=3)
    assert resumed.resumed_from.batch == 20
    assert "b21-0.625.weights.h5" in names(tmp_path)


def test_a_metric_that_no_callback_logs_is_an_error_at_the_first_save(tmp_path):
    model = small_model()
    with pytest.raises(InputError, match=r"\{val_f2\}.*was not logged by the end of the epoch.*\{val_f1\}") as raised:
        checkpoint = GlobalStepCheckpoint(str(tmp_path / "{val_f2}.weights.h5"))
        fit(model, Logs("val_f1", score), checkpoint, epochs=2, validation_data=arrays())
    assert int(model.optimizer.iterations.numpy()) == 10 and "\n" not in str(raised.value)


def test_a_metric_of_a_callback_waits_for_the_epoch_that_validates(tmp_path):
    class AtValidation(Logs):
        def on_epoch_end(self, epoch, logs=None):
            if "val_loss" in logs:
                super().on_epoch_end(epoch, logs)

    checkpoint = GlobalStepCheckpoint(str(tmp_path / "e{epoch}-{val_f1:.3f}.weights.h5"))
    fit(small_model(), AtValidation("val_f1", score), checkpoint, epochs=2, validation_data=arrays(), validation_freq=2)
    assert names(tmp_path) == ["e2-0.625.weights.h5"]


def test_a_format_that_does_not_fit_the_value_is_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"\{own:\.3f\}.*cannot format the logged value.*0\., 1\., 2\.") as raised:
        checkpoint = GlobalStepCheckpoint(str(tmp_path / "{own:.3f}.weights.h5"))
        fit(small_model(), Logs("own", np.arange(3.0)), checkpoint)
    assert "\n" not in str(raised.value)


def test_an_empty_text_gives_no_hidden_file(tmp_path):
    fit(small_model(), Logs("own", ""), GlobalStepCheckpoint(str(tmp_path / "{own}.{epoch}.weights.h5"), keep_last=1), epochs=2)
    assert names(tmp_path) == ["_.2.weights.h5"]
    assert latest_checkpoint(str(tmp_path / "{own}.{epoch}.weights.h5")).batch == 20


@pytest.mark.parametrize("filename", ["in/{own}.weights.h5", "in/{own}/b{batch}.weights.h5"])
def test_no_value_in_a_name_leads_out_of_the_directory(tmp_path, filename):
    """Each epoch logs another value, and each file is found as the newest one after those of later epochs are deleted."""
    values = ["../../up", "/etc/x", "..", ".", "a/b", "c\nd", "e\0f"]
    directory = tmp_path / "run"
    template = str(directory / filename)
    logs = Logs("own", lambda epoch: values[epoch])
    fit(small_model(), logs, GlobalStepCheckpoint(template), epochs=len(values))
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and [path.name for path in directory.iterdir()] == ["in"]
    depth = filename.count("/")
    assert len(list(directory.glob("in" + "/*" * depth))) == len(list(directory.rglob("*.h5"))) == len(values)
    resumed = GlobalStepCheckpoint(template, resume=True)
    fit(small_model(), logs, resumed, epochs=len(values))
    assert resumed.resumed_from.path == latest_checkpoint(template).path
    for batch in range(10 * len(values), 0, -10):
        found = latest_checkpoint(template)
        assert found.batch == batch
        os.remove(found.path)


def test_the_published_callback_takes_such_names_too(tmp_path):
    stock = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}-{top-5:.2f}.weights.h5"), save_weights_only=True)
    fit(small_model(metrics=[keras.metrics.MeanAbsoluteError(name="top-5")]), BatchAwareCheckpoint(stock))
    assert len(names(tmp_path)) == 1


def test_values_that_no_curve_can_show_are_left_out_with_one_warning(tmp_path):
    def with_vector():
        return small_model(metrics=[keras.metrics.F1Score(average=None, threshold=0.5, name="f1")])

    logged = [Logs(kind, value) for kind, value in VALUES.items()]
    with pytest.warns(UserWarning, match="No curves of") as warned:
        fit(with_vector(), *logged, GlobalStepTensorBoard(tmp_path, update_freq=5), epochs=2)
    assert len([each for each in warned if "No curves of" in str(each.message)]) == 2  # the batches', and the epochs'
    found = {tag: points for (run, tag), points in curves(tmp_path).items() if run == "train"}
    numbers = {"np.float32", "np.int64", "a tensor", "a bfloat16 tensor"}
    assert {tag.removeprefix("epoch_") for tag in found} == {"loss", "learning_rate", *numbers}
    assert found["epoch_a bfloat16 tensor"] == [(10, 0.25), (20, 0.25)]
