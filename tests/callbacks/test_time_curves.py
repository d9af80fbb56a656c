"""The curves of a run's time: the share of waiting for data, and goodput over restarts."""

import time

import keras
import pytest
import tensorflow as tf
from curves import curves
from processes import fork_program
from small import arrays, small_model

from callbacks import GlobalStepTensorBoard


class SlowStep(keras.Model):
    """Its train step takes 50 ms."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        with tf.control_dependencies([tf.numpy_function(_wait, [data[0]], tf.float32)]):
            return super().train_step((tf.identity(data[0]), data[1]))


def _wait(x):
    time.sleep(0.05)
    return x


def test_the_share_of_waiting_for_data_distinguishes_slow_data_from_a_slow_step(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(arrays()).batch(4).repeat(3)
    slow_data = data.map(lambda x, y: (tf.ensure_shape(tf.numpy_function(_wait, [x], x.dtype), x.shape), y))
    slow_step = SlowStep()
    slow_step.compile("adam", "mse")
    share = {}
    for name, model, batches in (("slow data", small_model(), slow_data), ("slow step", slow_step, data)):
        board = GlobalStepTensorBoard(tmp_path / name, update_freq=15, write_graph=False)
        model.fit(batches, verbose=0, callbacks=[board], shuffle=False)
        share[name] = curves(tmp_path / name)["batches", "time/data_wait_share"][-1][1]
    assert share["slow data"] > 0.5 > share["slow step"]


@pytest.mark.slow
def test_goodput_over_three_attempts_equals_the_clock(tmp_path):
    now = 1000.0
    # The run is killed after batch 11, with 8 batches kept, and after batch 17, with 16 batches kept.
    for kill_at in (11, 17, 1000):
        process = fork_program("clocked_run.py", tmp_path, now, kill_at)
        assert process.stdout, process.stderr
        ended = float(process.stdout)
        now = ended + 30  # until it is started again
    found = curves(tmp_path / "events")
    assert [step for step, _ in found["batches", "run/goodput"]] == [10, 20, 30, 40]
    trained = 40 - 3  # seconds: the first batch of each process is traced, and does not count
    assert found["batches", "run/goodput"][-1][1] == pytest.approx(trained / (ended - 1000), rel=0.001)
    assert found["batches", "run/restarts"][-1][1] == 2
