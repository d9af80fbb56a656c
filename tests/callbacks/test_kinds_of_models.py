"""Every kind of model resumes exactly: it ends like stock Keras without an interruption, variable by variable."""

import contextlib
import json
import warnings
import zipfile

import keras
import numpy as np
import pytest
from compare import datasets
from crashes import CrashAfter
from features import MULTI_OPTIMIZER
from generative_models import gan
from kind_data import BATCHES
from kinds import KINDS
from small import names

from callbacks import GlobalStepCheckpoint, InputError, counters_of, latest_checkpoint, restore

pytestmark = [pytest.mark.versions, pytest.mark.filterwarnings("error:The train step changes variables")]  # all are saved

EPOCHS = 2
CRASHES = (BATCHES, BATCHES + 1)  # after the last batch of an epoch, and after the first of the next one
IN_GRAPH_CRASHES = (2, BATCHES)  # also in the middle of an epoch
COMPARED = BATCHES + 1  # the batch whose file is compared with stock Keras's


@contextlib.contextmanager
def taken_for_built(model):
    """Stock Keras neither saves nor loads a model without `call` unless it is marked as built."""
    built, model.built = model.built, True
    yield
    model.built = built


class SaveWithKeras(keras.callbacks.Callback):
    """Saves with stock Keras after a batch of this fit."""

    def __init__(self, after, path):
        super().__init__()
        self.after, self.path, self.seen = after, path, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.after:
            save = self.model.save if self.path.suffix == ".keras" else self.model.save_weights
            with taken_for_built(self.model):
                save(self.path)


class Run:
    """How to train a kind of model: the scope, eager or not, and after which batches to crash."""

    def __init__(self, kind, scope, eager=False, crashes=CRASHES):
        self.kind, self.scope, self.eager, self.crashes = kind, scope, eager, crashes

    def fresh(self):
        """Returns a new model, as in a new process."""
        keras.backend.clear_session(free_memory=False)  # a garbage collection would take half of the time
        keras.utils.set_random_seed(7)
        with self.scope():
            model = self.kind.make()
        model.run_eagerly = self.eager
        if model.distribute_strategy.num_replicas_in_sync > 1:
            model.built = True  # required by Keras if it cannot build a model itself
        return model

    def fit(self, model, *callbacks):
        return model.fit(self.kind.data(), epochs=EPOCHS, verbose=0, callbacks=list(callbacks))

    def check(self, directory, suffix):
        """Trains with stock Keras, and again with a crash at each moment, and compares the results.

        Returns:
            The file of stock Keras and ours, of the same batch.
        """
        stock = directory / ("stock" + suffix)
        whole = self.fresh()
        if whole.distribute_strategy.num_replicas_in_sync > 1:
            counters_of(whole)  # TensorFlow adds up a GAN's loss in another order in a graph that also counts
        history = self.fit(whole, SaveWithKeras(COMPARED, stock))

        template = directory / "ours" / ("b{batch}" + suffix)
        for earlier, crash in zip((None, *self.crashes), (*self.crashes, None), strict=True):
            model = self.fresh()
            checkpoint = GlobalStepCheckpoint(template, save_freq=1, resume=True)
            if crash:
                with pytest.raises(InterruptedError):
                    self.fit(model, checkpoint, CrashAfter(crash, BATCHES))
            else:
                resumed = self.fit(model, checkpoint)
            assert (checkpoint.resumed_from and checkpoint.resumed_from.batch) == earlier

        assert counters_of(model).read().batch == EPOCHS * BATCHES
        assert_same_values(self.kind.values(whole), self.kind.values(model))
        assert (resumed.epoch, resumed.history) == (history.epoch, history.history)
        assert latest_checkpoint(template).batch == EPOCHS * BATCHES
        return stock, directory / "ours" / f"b{COMPARED}{suffix}"


def assert_same_values(one, other):
    for (name, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_array_equal(b, a, err_msg=name)


def assert_same_arrays(stock, ours):
    a, b = datasets(stock), datasets(ours)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(b[name], a[name], err_msg=name)


DISTINCT = tuple(kind for kind in KINDS if kind not in ("GAN with two optimizers", "VAE without call"))  # others are like these
# What runs each time; the rest is slow.
COMPILED = ("draws without a seed", "LoRA")
MIRRORED = ("tf.random.Generator and tf.Variable",)


def without_addresses(config):
    """Returns a configuration without the memory addresses that Keras writes into it."""
    return {name: value for name, value in config.items() if name != "shared_object_id"}


def cases(each_time, kinds=KINDS):
    marks = {kind: [] if kind in each_time else [pytest.mark.slow] for kind in kinds}
    marks.get("MultiOptimizer", []).append(MULTI_OPTIMIZER)
    return [pytest.param(kind, marks=marks[kind]) for kind in kinds]


def check_weights_file(run, directory):
    stock, ours = run.check(directory, ".weights.h5")
    assert_same_arrays(stock, ours)
    model = run.fresh()
    model.fit(run.kind.data().take(1), verbose=0)  # builds layers that need a batch
    before, loaded = run.kind.values(model), []
    for path in (stock, ours):
        with warnings.catch_warnings(), taken_for_built(model):
            warnings.simplefilter("error")
            model.load_weights(path)
        loaded.append(run.kind.values(model))
    assert any((a != b).any() for (_, a), (_, b) in zip(before, loaded[0], strict=True))
    assert_same_values(*loaded)


def check_archive(run, directory):
    configs = []
    for i, path in enumerate(run.check(directory, ".keras")):
        with zipfile.ZipFile(path) as archive:
            configs.append(json.loads(archive.read("config.json"), object_hook=without_addresses))
            (directory / f"{i}.weights.h5").write_bytes(archive.read("model.weights.h5"))
    assert configs[0] == configs[1]
    assert_same_arrays(directory / "0.weights.h5", directory / "1.weights.h5")


@pytest.mark.parametrize("kind", cases(DISTINCT))
def test_each_kind_of_model_ends_as_without_a_crash_and_its_files_equal_those_of_stock_keras(tmp_path, strategy, kind):
    check_weights_file(Run(KINDS[kind], strategy(1).scope, eager=True), tmp_path)


@pytest.mark.parametrize("kind", cases(COMPILED, DISTINCT))
def test_the_same_holds_for_compiled_train_steps_and_keras_archives(tmp_path, strategy, kind):
    """Stock Keras does not save every kind as an archive."""
    check = check_archive if KINDS[kind].keras_saves else check_weights_file
    check(Run(KINDS[kind], strategy(1).scope, crashes=IN_GRAPH_CRASHES), tmp_path)


@pytest.mark.parametrize(
    "kind", cases(MIRRORED, [kind for kind in KINDS if KINDS[kind].keras_mirrors and kind != "GAN with two optimizers"])
)
def test_the_same_holds_for_two_replicas(tmp_path, strategy, kind):
    Run(KINDS[kind], strategy(2).scope, crashes=CRASHES[1:]).check(tmp_path, ".weights.h5")


def test_the_step_is_that_of_the_optimizer_that_was_stepped_most(tmp_path):
    """A discriminator that is updated twice in a batch, also after a crash."""
    for crash in (2, None):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        model = gan(updates=2)
        model.run_eagerly = True
        checkpoint = GlobalStepCheckpoint(tmp_path / "b{batch}_s{step}.weights.h5", save_freq=1, resume=True)
        with pytest.raises(InterruptedError) if crash else contextlib.nullcontext():
            model.fit(KINDS["GAN with two optimizers"].data(), verbose=0, callbacks=[checkpoint, CrashAfter(crash, BATCHES)])
    assert [int(each.iterations.numpy()) for each in (model.d_optimizer, model.g_optimizer)] == [2 * BATCHES, BATCHES]
    assert names(tmp_path) == [f"b{i}_s{2 * i}.weights.h5" for i in range(1, BATCHES + 1)]
    assert latest_checkpoint(tmp_path).step == 2 * BATCHES


def sequential(*layers, optimizer="adam", inputs=(6,)):
    def make():
        model = keras.Sequential([keras.Input(inputs), *(layer() for layer in layers), keras.layers.Dense(1)])
        model.compile(optimizer, "mse", run_eagerly=True)
        model.optimizer.build(model.trainable_variables)
        return model

    return make


def adapted(rank):
    def make():
        layer = keras.layers.Dense(4)
        layer.build((None, 6))
        layer.enable_lora(rank)
        return layer

    return make


def dense(units, dtype="float32"):
    return lambda: keras.layers.Dense(units, dtype=dtype)


# The model that is saved, the one that resumes, and what the error says: a variable, and both shapes where both have it. The
# first difference may be one that follows from another: of an optimizer's variables, which are numbered.
OTHERS = {
    "width": (sequential(dense(4)), sequential(dense(5)), r"dense\S*/(kernel|bias)\S* has shape \(.*5.*\).* here, \(.*4.*\)"),
    "LoRA's rank": (sequential(adapted(2)), sequential(adapted(3)), r"lora_kernel_[ab]\S* has shape \(.*3.*\).* here, \(.*2.*\)"),
    "dtype": (sequential(dense(4)), sequential(dense(4, "float16")), r"dense\S*/(kernel|bias)\S* .* float16 here, .* float32 in"),
    "a layer more": (sequential(dense(4)), sequential(dense(4), dense(4)), r"dense_1/(kernel|bias) has shape \(4.* here, \(.*1"),
    "a layer less": (sequential(dense(4), dense(4)), sequential(dense(4)), r"dense_1/(kernel|bias) has shape \(.*1.* here, \(4"),
    "adapters": (
        sequential(dense(4)),
        sequential(adapted(2)),
        r"only this model has dense\S*/lora_kernel_[ab], of shape \(.*2.*\)",
    ),
    "an optimizer": (
        sequential(dense(4)),
        sequential(dense(4), optimizer="rmsprop"),
        r"rm_?sprop/\S* has shape \(4,\) .* \(6, 4\)",
    ),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_a_file_of_another_model_is_refused_before_the_first_batch_and_changes_nothing(tmp_path, difference):
    saved, resumes, words = OTHERS[difference]
    template = tmp_path / "b{batch}.weights.h5"
    keras.backend.clear_session(free_memory=False)
    saved().fit(KINDS["accumulated gradients"].data(), verbose=0, callbacks=[GlobalStepCheckpoint(template)])
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(8)
    model = resumes()
    kind = KINDS["accumulated gradients"]
    before = kind.values(model)
    begun = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            begun.append(epoch)

    with pytest.raises(InputError, match=rf"b{BATCHES}\.weights\.h5 is of another model.*{words}"):
        model.fit(kind.data(), verbose=0, callbacks=[GlobalStepCheckpoint(template, resume=True), Look()])
    with pytest.raises(InputError, match=words):
        restore(model, template)
    assert not begun
    assert_same_values(before, kind.values(model))
    assert counters_of(model).read().batch == 0
    assert names(tmp_path) == [f"b{BATCHES}.weights.h5"]
