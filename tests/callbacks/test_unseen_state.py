"""State that no checkpoint contains is reported before the first batch: of train steps, and of callbacks."""

import collections
import warnings

import keras
import pytest
import tensorflow as tf
from small import fit, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard


class Draws(keras.layers.Layer):
    """Adds what a function draws to its input."""

    def __init__(self, draw):
        super().__init__()
        self.draw, self.seeds, self.generator = draw, keras.random.SeedGenerator(1), tf.random.Generator.from_seed(1)
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
        self.counters = {tf.Variable(0.0).ref()}
        self.counts, self.text = collections.deque([tf.Variable(0.0)]), tf.Variable("", trainable=False)

    def call(self, x, training=False):
        return x + self.draw(self, tf.shape(x)) if training else x


def count(layer, shape):
    key = tf.constant([1], tf.int64)
    seen = layer.table.lookup(key)
    layer.table.insert(key, seen + 1)
    return tf.reshape(seen, [1])


COUNT = tf.Variable(0.0, name="count_of_the_script")


def write(layer, shape):
    layer.text.assign("written")
    return tf.zeros(shape)


def sample(layer, shape):
    sampled, *_ = tf.random.log_uniform_candidate_sampler(tf.zeros((1, 1), tf.int64), 1, 2, True, 9)
    return tf.reduce_sum(tf.cast(sampled, tf.float32))


SEEN = {
    "a variable in a deque": lambda layer, shape: layer.counts[0].assign_add(1.0),
    "a constant of the script": lambda layer, shape: tf.while_loop(lambda i: i < 2.0, lambda i: [i + 1.0 + COUNT], [0.0])[0],
    "keras.random": lambda layer, shape: keras.random.normal(shape, seed=layer.seeds),
    "a generator": lambda layer, shape: layer.generator.normal(shape),
}
UNSEEN = {
    "tf.random.normal": lambda layer, shape: tf.random.normal(shape),
    "tf.random.truncated_normal": lambda layer, shape: tf.function(tf.random.truncated_normal)(shape),
    "a hash table": count,
    "a sampler of candidates": sample,
    "a variable of the script": lambda layer, shape: COUNT.assign_add(0.0),
    "a variable that is written in a branch": lambda layer, shape: tf.cond(
        shape[0] > 1, lambda: COUNT.assign_add(0.0), lambda: 0.0
    ),
    "a variable in a set": lambda layer, shape: next(iter(layer.counters)).deref().assign_add(1.0),
    "a text": write,
}


class KeepsVariables(keras.callbacks.Callback):
    """Keeps a variable, a list of variables and an optimizer outside the model, and refers to those of the model."""

    def on_train_begin(self, logs=None):
        self.average = tf.Variable(0.0)
        self.shadows = [keras.Variable(v) for v in self.model.trainable_variables]
        self.own, self.models = keras.optimizers.SGD(), self.model.optimizer
        self.kernel, self.bias = (v.value for v in self.model.trainable_variables)


class StoresVariables(KeepsVariables):
    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def told(words, model, *callbacks):
    """Returns the warnings with these words in a training."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(model, *callbacks)
    return [str(each.message) for each in said if words in str(each.message)]


def test_variables_that_a_callback_without_state_keeps_are_reported_before_the_first_batch(tmp_path):
    def told_with(*others, resume=True):
        checkpoint = GlobalStepCheckpoint(tmp_path / f"{type(others[0]).__name__}-{resume}.weights.h5", resume=resume)
        return told("No checkpoint contains the variables", small_model(keras.optimizers.Adam(use_ema=True)), checkpoint, *others)

    (line,) = told_with(KeepsVariables())
    assert "of KeepsVariables.average, KeepsVariables.own, KeepsVariables.shadows: after a resume" in line
    assert not told_with(KeepsVariables(), resume=False)
    assert not told_with(StoresVariables())
    assert not told_with(
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss"),
        keras.callbacks.SwapEMAWeights(),
        keras.callbacks.TensorBoard(tmp_path / "logs"),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.LambdaCallback(),
        GlobalStepTensorBoard(tmp_path / "ours"),
    )


class OneCycle(keras.callbacks.Callback):
    """Lowers the learning rate with each batch, as many scripts do."""

    def __init__(self):
        super().__init__()
        self.batches, self.most = 0, 40

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1
        self.model.optimizer.learning_rate = 0.05 * (1 - self.batches / self.most)


class StatefulOneCycle(OneCycle):
    def get_state(self):
        return self.batches

    def set_state(self, state):
        self.batches = state


class Counts(keras.callbacks.Callback):
    """Counts, and does not change the model."""

    seen, is_slow = 0, False

    def __init__(self):
        super().__init__()
        self.seen = 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1

    def on_epoch_end(self, epoch, logs=None):
        self.rate = self.model.optimizer.learning_rate


class Anything:
    """Has every attribute, as some settings and lazy objects have."""

    def __getattr__(self, name):
        return self


class HasSettings(Counts):
    settings = Anything()


@pytest.mark.parametrize("kind, is_reported", [(OneCycle, True), (StatefulOneCycle, False), (Counts, False), (HasSettings, False)])
def test_a_callback_that_changes_the_model_by_a_count_of_its_own_is_reported_before_the_first_batch(tmp_path, kind, is_reported):
    said = told(
        "No checkpoint contains", small_model(), GlobalStepCheckpoint(tmp_path / "b{batch}.weights.h5", resume=True), kind()
    )
    assert [each.partition(":")[0] for each in said] == ["No checkpoint contains OneCycle.batches"] * is_reported


@pytest.mark.parametrize("draws", [*SEEN, *UNSEEN])
def test_state_that_no_checkpoint_can_store_is_reported_before_the_first_batch(tmp_path, draws):
    model = keras.Sequential([keras.Input((6,)), Draws((SEEN | UNSEEN)[draws]), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    for resume in (False, True):
        checkpoint = GlobalStepCheckpoint(tmp_path / str(resume) / "b{batch}.weights.h5", resume=resume)
        assert len(told("whose state no checkpoint contains", model, checkpoint)) == (resume and draws in UNSEEN)
