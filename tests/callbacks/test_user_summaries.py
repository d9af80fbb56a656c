"""`tf.summary` calls of users: the tags of stock TensorBoard, at the global batch."""

import gc
from collections import defaultdict

import keras
import pytest
import tensorflow as tf
from small import Do, arrays, fit, small_model

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard

OWN = ("layer/training", "layer/testing", "callback/begin", "callback/batch", "callback/epoch", "my_step", "my_inputs")


class Watched(keras.layers.Layer):
    """Writes the mean of its input, and whether it trains."""

    def call(self, x, training=False):
        tf.summary.scalar("layer/training" if training else "layer/testing", tf.reduce_mean(x))
        return x


class Model(keras.Model):
    """Writes in its train step, and counts it in a variable."""

    def __init__(self):
        super().__init__()
        self.watched, self.dense = Watched(), keras.layers.Dense(1)
        self.steps = tf.Variable(0.0, trainable=False)

    def call(self, x, training=False):
        return self.dense(self.watched(x, training=training))

    def train_step(self, data):
        self.steps.assign_add(1.0)
        tf.summary.scalar("my_step", self.steps)
        tf.summary.histogram("my_inputs", data[0])
        return super().train_step(data)


class Tells(keras.callbacks.Callback):
    """Writes in hooks."""

    def on_train_begin(self, logs=None):
        tf.summary.text("callback/begin", "It begins.")

    def on_train_batch_end(self, batch, logs=None):
        tf.summary.scalar("callback/batch", logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        tf.summary.scalar("callback/epoch", epoch, step=epoch)


def watched_model(**compiled):
    keras.utils.set_random_seed(2)
    model = Model()
    model.compile("sgd", "mse", **compiled)
    return model


def found_in(directory):
    """Returns run -> tag -> [(step, value)], after restarts."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(directory.rglob("*tfevents*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                for points in found[path.parent.name].values():
                    points[:] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                found[path.parent.name][value.tag].append((event.step, value.simple_value))
    return found


def own_tags(found):
    tags = {tag for of_run in found.values() for tag in of_run}
    return {tag for tag in tags if tag.endswith(OWN)}


def points(found, run, tag):
    """Returns the steps of a tag that begins with the name of its layer."""
    return [step for whole, of_tag in found[run].items() if whole.endswith(tag) for step, _ in of_tag]


@pytest.mark.parametrize("first", [True, False])
def test_tags_equal_those_of_stock_and_steps_are_global_batches(tmp_path, first):
    def listed(board):
        return [Tells(), board] if first else [board, Tells()]

    options = {"epochs": 2, "validation_data": arrays(3)}
    fit(watched_model(), *listed(keras.callbacks.TensorBoard(tmp_path / "stock", update_freq=1)), **options)
    keras.backend.clear_session(free_memory=False)  # tags name the model
    fit(watched_model(), *listed(GlobalStepTensorBoard(tmp_path / "ours", update_freq=1)), **options)
    stock, ours = found_in(tmp_path / "stock"), found_in(tmp_path / "ours")
    # the hook that begins training is too early for stock's writer where the callback comes before it
    assert own_tags(ours) == own_tags(stock) and len(own_tags(ours)) == len(OWN) - first
    assert points(ours, "batches", "layer/training") == points(ours, "batches", "my_inputs") == list(range(1, 21))
    assert ours["batches"]["my_step"] == [(batch, float(batch)) for batch in range(1, 21)]
    assert points(ours, "batches", "callback/batch") == list(range(1, 21))
    assert points(ours, "batches", "callback/epoch") == [0, 1]  # an explicit step is kept
    assert points(ours, "validation", "layer/testing") == [10] * 3 + [20] * 3


def test_they_follow_update_freq(tmp_path):
    fit(watched_model(), GlobalStepTensorBoard(tmp_path, update_freq=4), Tells(), epochs=2)
    found = found_in(tmp_path)
    assert found["batches"]["my_step"] == [(batch, float(batch)) for batch in (4, 8, 12, 16, 20)]
    assert points(found, "batches", "callback/batch") == points(found, "batches", "layer/training") == [4, 8, 12, 16, 20]


def test_without_points_for_batches_there_are_no_user_summaries(tmp_path):
    fit(watched_model(), GlobalStepTensorBoard(tmp_path, update_freq="epoch"), Tells(), epochs=2)
    assert own_tags(found_in(tmp_path)) == set()


def test_a_killed_run_has_the_points_of_the_uninterrupted_one(tmp_path):
    def life(where, crash_at=None):
        own = [
            GlobalStepTensorBoard(tmp_path / where, update_freq=1),
            GlobalStepCheckpoint(tmp_path / where / "b{batch}.weights.h5", save_freq=5, resume=True),
        ]

        def crash():
            raise RuntimeError

        fit(watched_model(), *own, *([Do(crash_at, crash)] if crash_at else []), epochs=3, shuffle=False)

    life("whole")
    with pytest.raises(RuntimeError):
        life("cut", crash_at=17)
    life("cut")
    whole, cut = found_in(tmp_path / "whole"), found_in(tmp_path / "cut")
    assert cut["batches"]["my_step"] == whole["batches"]["my_step"] and len(whole["batches"]["my_step"]) == 30
    assert points(cut, "batches", "layer/training") == points(whole, "batches", "layer/training") == list(range(1, 31))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_second_fit_and_a_second_callback_continue(tmp_path, strategy, replicas):
    with strategy(replicas).scope():
        model = watched_model()
    fit(model)
    for _ in range(2):
        fit(model, GlobalStepTensorBoard(tmp_path, update_freq=5))
    assert points(found_in(tmp_path), "batches", "layer/training") == [5, 10, 15, 20]


def test_a_fit_that_failed_does_not_disturb_the_next_one(tmp_path):
    def crash():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(watched_model(), GlobalStepTensorBoard(tmp_path / "failed", update_freq=5), Do(3, crash))
    collects = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: gc.collect())
    fit(watched_model(), GlobalStepTensorBoard(tmp_path / "next", update_freq=5), collects)
    assert points(found_in(tmp_path / "next"), "batches", "layer/training") == [5, 10]


def test_a_writer_of_the_user_is_not_affected_and_becomes_the_default_again(tmp_path):
    own = tf.summary.create_file_writer(str(tmp_path / "own"))
    with own.as_default(step=7):
        fit(small_model(), GlobalStepTensorBoard(tmp_path / "tb", update_freq=1), Tells())
        tf.summary.scalar("behind", 1.0)
    own.close()
    assert {tag: [step for step, _ in of_tag] for tag, of_tag in found_in(tmp_path)["own"].items()} == {"behind": [7]}


def test_an_evaluation_before_any_fit_is_recorded(tmp_path):
    model = watched_model()
    model.evaluate(*arrays(2), batch_size=4, verbose=0, callbacks=[GlobalStepTensorBoard(tmp_path, update_freq=1)])
    assert points(found_in(tmp_path), "validation", "layer/testing") == [0, 0]


def test_executions_of_several_batches_are_recorded_at_their_last_batch(tmp_path):
    fit(watched_model(steps_per_execution=4), GlobalStepTensorBoard(tmp_path, update_freq=4), epochs=2)
    assert points(found_in(tmp_path), "batches", "my_step") == [4] * 4 + [8] * 4 + [14] * 4 + [18] * 4 + [20] * 2
