"""A loop whose length a checkpoint determines ends, says how long it takes, or is refused within seconds."""

import warnings

import keras
import pytest
import tensorflow as tf
from hostile import with_header
from small import BATCH, BATCHES, Do, arrays, small_model

from callbacks import GlobalStepCheckpoint, InputError
from callbacks.counting.long_loops import bounded

DAY = 86_400


class Clock:
    """Passes `seconds` at each step of a loop."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        self.now += self.seconds
        return self.now


def steps(count, seconds):
    return sum(1 for _ in bounded(count, f"reads {count} batches", "b.weights.h5", Clock(seconds)))


def test_a_loop_that_ends_within_half_a_minute_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [steps(count, 0.1) for count in (0, 1, 5, 200)] == [0, 1, 5, 200]


def test_a_long_loop_says_once_how_long_it_takes():
    with pytest.warns(
        UserWarning, match=r"^The resume from b\.weights\.h5 reads 6000 batches, which takes about .* min more.$"
    ) as said:
        assert steps(6000, 0.1) == 6000
    assert len(said) == 1


def test_a_first_step_that_fills_buffers_refuses_nothing():
    clock = Clock(0.0)
    for done in bounded(10**5, "reads", "b.weights.h5", clock):
        clock.now += 3600 if done == 0 else 0.0001


@pytest.mark.parametrize("count", [40 * DAY, 10**17, 2**53])
def test_a_loop_of_over_a_month_is_refused_after_seconds(count):
    clock = Clock(1.0)
    with pytest.raises(InputError, match=r"^Cannot resume from b\.weights\.h5: a resume reads .* days here") as refused:
        for _ in bounded(count, f"reads {count} batches", "b.weights.h5", clock):
            assert clock.now < 20
    assert "\n" not in str(refused.value)


class Slices(keras.utils.PyDataset):
    """Data from Python code."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        return tuple(part[:BATCH] for part in arrays())


def shuffled():
    return tf.data.Dataset.from_tensor_slices(arrays()).shuffle(8, seed=3).batch(BATCH)


def generated():
    def generate():
        while True:
            yield tuple(part[:BATCH] for part in arrays())

    types = tuple(tf.TensorSpec((BATCH, width), "float32") for width in (6, 1))
    return tf.data.Dataset.from_generator(generate, output_signature=types)


LARGE = 2**53
CLAIMS = {  # the data, claims of the header by part, and options of `fit`
    "earlier iterators": (shuffled, {"data": {"created": LARGE, "used": LARGE}}, {}),
    "epochs of a PyDataset": (Slices, {"counts": {"epoch": LARGE - 1}, "data": {"epochs": LARGE - 1}}, {}),
    "batches of endless data": (generated, {"counts": {"batch": LARGE}, "data": {"drawn": LARGE}}, {"steps_per_epoch": 10}),
    "batches of an epoch": (lambda: generated().take(8), {"counts": {"batch": LARGE, "batches_in_epoch": LARGE}}, {}),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_that_claims_an_endless_training_is_refused_with_the_name_of_the_file(tmp_path, claim):
    make, claims, options = CLAIMS[claim]
    with pytest.raises(InterruptedError):
        train(tmp_path, make(), Do(6, stop), **options)

    def change(header):
        for part, values in claims.items():
            header[part] |= values

    in_trailer = {name: number for name, number in claims.get("counts", {}).items() if name in ("batch", "epoch")}
    path = with_header(tmp_path / "b5.weights.h5", change, **in_trailer)
    with pytest.raises(InputError, match=f"^Cannot resume from {path}: a resume .* would take .* days here"):
        train(tmp_path, make(), **options)


def stop():
    raise InterruptedError


def train(directory, data, *callbacks, **options):
    checkpoint = GlobalStepCheckpoint(str(directory / "b{batch}.weights.h5"), save_freq=5, background=False, resume=True)
    small_model().fit(data, epochs=LARGE, verbose=0, callbacks=[checkpoint, *callbacks], **options)
