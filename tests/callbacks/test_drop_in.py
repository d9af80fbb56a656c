"""Every usage of `keras.callbacks.ModelCheckpoint` works with our classes: runs both, and compares the files."""

import keras
import numpy as np
import pytest
from features import MONITOR
from small import arrays, fit, names, small_model

from callbacks import BatchAwareCheckpoint, GlobalStepCheckpoint, InputError, latest_checkpoint

pytestmark = pytest.mark.versions

CLASSES = [keras.callbacks.ModelCheckpoint, GlobalStepCheckpoint]


def run_both(tmp_path, filename, epochs=3, model=small_model, **options):
    """Trains once with each class. Returns directory and callback of stock, and of ours."""
    results = []
    for kind in CLASSES:
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        directory = tmp_path / kind.__name__
        directory.mkdir()
        callback = kind(str(directory / filename), **options)
        fit(model(), callback, epochs=epochs, validation_data=arrays(), shuffle=False)
        results.append((directory, callback))
    return results


def weights_in(path):
    keras.backend.clear_session(free_memory=False)
    if path.suffix == ".keras":
        return keras.models.load_model(path).get_weights()
    model = small_model()
    model.load_weights(path)
    return model.get_weights()


def assert_same_files(stock, ours):
    assert names(stock) == names(ours) != []
    for name in names(stock):
        for a, b in zip(weights_in(stock / name), weights_in(ours / name), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


USES = {
    "one file, replaced at each epoch": ("last.keras", {}),
    "one file of weights": ("last.weights.h5", {"save_weights_only": True}),
    "a file for each epoch": ("e{epoch:02d}.keras", {}),
    "with a metric in the name": ("e{epoch:02d}-{val_loss:.5f}.weights.h5", {"save_weights_only": True}),
    "the best, by default": ("best.keras", {"save_best_only": True}),
    "the best by the training loss": ("best-{epoch}.keras", {"save_best_only": True, "monitor": "loss"}),
    "the best by a maximum": ("best-{epoch}.keras", {"save_best_only": True, "monitor": "val_accuracy", "mode": "max"}),
    "mode auto knows accuracy": ("best-{epoch}.keras", {"save_best_only": True, "monitor": "val_accuracy"}),
    "an unknown mode warns and means auto": ("best-{epoch}.keras", {"save_best_only": True, "mode": "unknown"}),
    "better than a threshold": ("e{epoch}.keras", {"save_best_only": True, "monitor": "loss", "initial_value_threshold": 1e9}),
    "every so many batches, into one file": ("last.weights.h5", {"save_weights_only": True, "save_freq": 10}),
    "with lines of output": ("e{epoch}.weights.h5", {"save_weights_only": True, "verbose": 1}),
}


def classifier():
    return small_model(metrics=["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_each_usage_gives_the_same_files_as_stock(tmp_path, use):
    filename, options = USES[use]
    (stock, theirs), (ours, callback) = run_both(tmp_path, filename, model=classifier, **options)
    assert_same_files(stock, ours)
    assert callback.best == pytest.approx(theirs.best) if options.get("save_best_only") else True


def test_nothing_better_than_the_threshold_saves_nothing(tmp_path):
    for directory, _ in run_both(tmp_path, "e{epoch}.keras", save_best_only=True, monitor="loss", initial_value_threshold=-1.0):
        assert names(directory) == []


@MONITOR
def test_a_missing_monitor_is_a_warning_and_the_run_continues(tmp_path):
    with pytest.warns(UserWarning, match="Can save best model only with unknown available"):
        (stock, _), (ours, _) = run_both(tmp_path, "e{epoch}.keras", save_best_only=True, monitor="unknown", mode="min")
    assert names(stock) == names(ours)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"filepath": "a.keras", "save_freq": "invalid_save_freq"}, "Unrecognized save_freq"),
        ({"filepath": "a.ckpt"}, "The filepath provided must end in"),
        ({"filepath": "a.ckpt", "save_weights_only": True}, "he filepath provided must end in"),
        ({"filepath": "a.keras", "save_weights_only": True}, "weights.h5"),
    ],
)
def test_an_invalid_argument_is_the_same_kind_of_error(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(**arguments)


def test_positional_arguments_mean_the_same(tmp_path):
    given = (str(tmp_path / "best.weights.h5"), "loss", 0, True, True, "min", "epoch", 3.5)
    stock, ours = (kind(*given) for kind in CLASSES)
    for name in ("filepath", "monitor", "verbose", "save_best_only", "save_weights_only", "save_freq", "best"):
        assert getattr(stock, name) == getattr(ours, name), name


def test_a_path_object_is_a_path(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5"))
    assert names(tmp_path) == ["b10.weights.h5"]


def test_a_missing_directory_is_created(tmp_path):
    for directory, _ in run_both(tmp_path, "deep/er/e{epoch}.keras"):
        assert names(directory / "deep" / "er") == ["e1.keras", "e2.keras", "e3.keras"]


def test_a_directory_may_have_a_counter_too(tmp_path):
    template = str(tmp_path / "epoch-{epoch}" / "b{batch}.weights.h5")
    for epochs in (2, 3):
        callback = GlobalStepCheckpoint(template, save_freq=5, resume=True)
        fit(small_model(), callback, epochs=epochs)
    assert callback.resumed_from.batch == 20
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/b*")} == {
        f"epoch-{(batch + 9) // 10}/b{batch}.weights.h5" for batch in (5, 10, 15, 20, 25, 30)
    }


@pytest.mark.parametrize("filename", ["model-batch-{batch}.weights.h5", "model_batch_at_{batch:05d}.weights.h5"])
def test_the_published_wrapper_of_a_stock_callback_works(tmp_path, filename):
    stock = keras.callbacks.ModelCheckpoint(str(tmp_path / filename), save_freq=5, save_weights_only=True, verbose=0)
    fit(small_model(), BatchAwareCheckpoint(stock), epochs=2)
    assert names(tmp_path) == sorted(filename.format(batch=batch) for batch in (5, 10, 15, 20))


def test_the_published_wrapper_uses_the_settings_of_the_stock_callback(tmp_path):
    stock = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best-{batch}.keras"), monitor="loss", mode="min", save_best_only=True, initial_value_threshold=0.0
    )
    fit(small_model(), BatchAwareCheckpoint(stock), epochs=2)
    assert names(tmp_path) == []  # no loss is below zero


def test_a_file_contains_its_metrics(tmp_path):
    history = fit(
        classifier(), GlobalStepCheckpoint(str(tmp_path / "e{epoch}.weights.h5")), epochs=2, validation_data=arrays()
    ).history
    told = latest_checkpoint(tmp_path).metrics
    assert {name: told[name] for name in history} == {name: values[-1] for name, values in history.items()}


def test_a_legacy_file_is_refused_with_the_suffixes_that_work(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.weights\.h5, or in \.keras"):
        GlobalStepCheckpoint(str(tmp_path / "model.h5"))
