"""`--skip-batches` leaves batches out of the order, and changes nothing else."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from small import Do

from callbacks import GlobalStepCheckpoint, InputError, counters_of, latest_checkpoint
from recipes.common.data import Arrays, training_data
from recipes.common.data.skipped import SkippedBatches
from recipes.common.distribution import Distribution
from recipes.mnist import parse_args

BATCH, BATCHES, EPOCHS = 4, 5, 3
SINGLE = Distribution("single", ("/cpu:0",))
RANDOM = np.random.default_rng(0).normal(size=(BATCH * BATCHES + 1, 6)).astype("float32")


def dense(where=SINGLE):
    keras.utils.set_random_seed(0)
    with where.scope():
        model = keras.Sequential([keras.Input([6]), keras.layers.Dense(2)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data_for(model, flag=None, where=SINGLE):
    numbers = np.arange(len(RANDOM))
    data = training_data(Arrays(RANDOM, numbers % 2), model, where, global_batch_size=BATCH, seed=7)
    data.skipped.flag = flag
    return data


def train(directory, *callbacks, flag=None, epochs=EPOCHS, resume=True):
    """Trains with a checkpoint at each batch. Returns the model."""
    model = dense()
    data = data_for(model, flag)
    checkpoint = GlobalStepCheckpoint(str(directory / "b{batch:02d}.weights.h5"), save_freq=1, resume=resume)
    model.fit(data, epochs=epochs, verbose=0, callbacks=[data.skipped, checkpoint, *callbacks])
    return model


def order(flag=None, replicas=1, epochs=EPOCHS):
    """Returns the first input of each sample of an untrained model, batch by batch."""
    where = SINGLE
    if replicas > 1:
        devices = tuple(f"/cpu:{i}" for i in range(replicas))
        reduce = tf.distribute.ReductionToOneDevice()
        where = Distribution("mirrored", devices, tf.distribute.MirroredStrategy(list(devices), cross_device_ops=reduce))
    model = dense(where)
    data, counters, found = data_for(model, flag, where), counters_of(model), []
    for epoch in range(epochs):
        counters.begin_epoch(epoch)
        data.on_epoch_begin()
        local = where.strategy.experimental_local_results if where.strategy else lambda value: (value,)
        found += [np.concatenate([share.numpy()[:, 0] for share in local(x)]) for x, _ in data.get_tf_dataset()]
    return np.array(found)


@pytest.fixture(scope="module")
def longer():
    return order(epochs=EPOCHS + 2)  # what moves up at the end is from the passes after the last one


@pytest.mark.parametrize(
    "flag, replicas", [((1, 1), 1), ((2, 4), 1), ((5, 6), 1), ((3, 12), 1), ((15, 15), 1), ((2, 4), 2), ((3, 12), 2)]
)
def test_the_order_continues_after_batches_that_are_left_out(longer, flag, replicas):
    expected = np.delete(longer, range(flag[0] - 1, flag[1]), axis=0)[: EPOCHS * BATCHES]
    np.testing.assert_array_equal(order(flag, replicas), expected)


def test_without_the_flag_the_order_is_what_it_was():
    assert order().shape == (EPOCHS * BATCHES, BATCH)
    assert len(np.unique(order(epochs=1))) == BATCHES * BATCH


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_the_positions_that_remain(seed):
    random = np.random.default_rng(seed)
    skipped, out = SkippedBatches(batches_per_epoch=7), set()
    ranges = sorted((int(first), int(first + length)) for first, length in random.integers(1, 12, (3, 2)))
    skipped.set_state({"ranges": ranges, "batches_per_epoch": 7})
    for first, last in ranges:
        out |= set(range(first - 1, last))
    kept = [place for place in range(100) if place not in out]
    begin, end = sorted(random.integers(0, 40, 2))
    runs = skipped.runs(int(begin), int(end))
    assert [place for first, last in runs for place in range(first, last)] == kept[begin:end]
    assert all(first // 7 == (last - 1) // 7 for first, last in runs)


@pytest.mark.slow
def test_a_resume_without_the_flag_leaves_out_the_same_batches(tmp_path):
    class Killed(Exception):
        pass

    def kill():
        raise Killed

    uninterrupted = train(tmp_path / "uninterrupted", flag=(4, 9))
    for batch in (2, 5, 7):  # before the gap, and after it in two epochs
        with pytest.raises(Killed):
            train(tmp_path / "killed", Do(batch, kill), flag=(4, 9) if batch == 2 else None)
    resumed = train(tmp_path / "killed")
    for one, other in zip(uninterrupted.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    found = latest_checkpoint(tmp_path / "killed")
    assert (found.batch, found.samples, found.epoch) == (EPOCHS * BATCHES, EPOCHS * BATCHES * BATCH, EPOCHS)


def test_a_later_resume_can_leave_out_more_batches(tmp_path):
    train(tmp_path, flag=(2, 3), epochs=1)  # trained on 1, 4, 5, 6, 7
    train(tmp_path, flag=(8, 9), epochs=2)
    train(tmp_path, epochs=3)
    uninterrupted = dense()
    data = data_for(uninterrupted)
    data.skipped.set_state({"ranges": [[2, 3], [8, 9]], "batches_per_epoch": BATCHES})
    uninterrupted.fit(
        data,
        epochs=3,
        verbose=0,
        callbacks=[data.skipped, GlobalStepCheckpoint(str(tmp_path / "uninterrupted" / "b{batch}.keras"))],
    )
    resumed = dense()
    resumed.load_weights(latest_checkpoint(tmp_path).path)
    np.testing.assert_array_equal(uninterrupted.get_weights()[0], resumed.get_weights()[0])


def test_the_same_command_may_be_repeated(tmp_path):
    for epochs in (1, 2):
        train(tmp_path, flag=(2, 3), epochs=epochs)
    assert latest_checkpoint(tmp_path).batch == 2 * BATCHES


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ((2, 3), r"--skip-batches 2:3 begins before batch 6 of the order.*Resume from a checkpoint at batch 1 or earlier"),
        ((9, 16), r"--skip-batches 9:16 ends after batch 15, the last batch of the last epoch"),
    ],
)
def test_a_range_that_was_trained_on_or_is_never_reached_is_refused_before_training(tmp_path, flag, message):
    train(tmp_path, epochs=1)
    with pytest.raises(InputError, match=message) as raised:
        train(tmp_path, flag=flag)
    assert "\n" not in str(raised.value)
    assert latest_checkpoint(tmp_path).batch == BATCHES


def test_after_a_gap_the_next_batch_of_the_order_is_named(tmp_path):
    train(tmp_path, flag=(2, 3), epochs=1)
    with pytest.raises(InputError, match="begins before batch 8 of the order"):
        train(tmp_path, flag=(7, 8))


def test_another_order_is_refused(tmp_path):
    train(tmp_path, flag=(2, 3), epochs=1)
    model = dense()
    data = training_data(Arrays(RANDOM, np.arange(len(RANDOM)) % 2), model, SINGLE, global_batch_size=2, seed=7)
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch:02d}.weights.h5"), resume=True)
    fit = functools.partial(model.fit, data, epochs=2, verbose=0, callbacks=[data.skipped, checkpoint])
    with pytest.raises(InputError, match=r"leaves out batches 2:3 of an order with 5 batches in an epoch\. .*with 10 batches"):
        fit()


@pytest.mark.parametrize("text", ["", "5", "5:4", "0:3", "-1:3", "a:b", "1:2:3", "1.5:2"])
def test_a_malformed_range_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"argument --skip-batches: must be FIRST:LAST, such as 500:510\. Received: ") as raised:
        parse_args([f"--skip-batches={text}"])
    assert "\n" not in str(raised.value)
