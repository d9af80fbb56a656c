"""The learning rate of a large batch, step by step."""

import keras
import pytest

from callbacks import InputError
from recipes.common.learning_rate import constant_learning_rate, scaled_learning_rate
from recipes.mnist import parse_args

BATCHES = 4  # of an epoch


def of(args):
    start, peak = scaled_learning_rate(args.learning_rate, args.global_batch_size, args.base_batch_size)
    return constant_learning_rate(start, peak, warmup_batches=round(args.warmup_epochs * BATCHES))


def rates(*flags, steps=range(0, 13, 2)):
    rate = of(parse_args(["--learning-rate", "0.1", "--global-batch-size", "256", *flags]))
    return [round(float(rate(step)) if callable(rate) else rate, 6) for step in steps]


def test_the_rate_applies_to_the_global_batch_unless_a_base_batch_is_given():
    assert rates() == [0.1] * 7
    assert rates("--base-batch-size", "64") == [0.4] * 7
    assert rates("--base-batch-size", "512") == [0.05] * 7


def test_a_warm_up_rises_linearly_from_the_rate_before_scaling_to_the_scaled_rate():
    assert rates("--base-batch-size", "64", "--warmup-epochs", "2") == [0.1, 0.175, 0.25, 0.325, 0.4, 0.4, 0.4]
    assert rates("--warmup-epochs", "2") == [0.0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    assert rates("--warmup-epochs", "0.5") == [0.0, *[0.1] * 6]


def test_a_warm_up_to_a_lower_rate_does_not_begin_above_it():
    assert rates("--base-batch-size", "512", "--warmup-epochs", "2") == [0.05] * 7


def test_a_saved_model_with_a_warm_up_loads_with_stock_keras():
    rate = of(parse_args(["--warmup-epochs", "1"]))
    assert type(rate).__module__.startswith("keras.")
    assert keras.optimizers.deserialize(keras.optimizers.serialize(keras.optimizers.SGD(rate))).get_config()


def test_a_negative_warm_up_is_refused():
    with pytest.raises(InputError, match=r"--warmup-epochs.*must not be below 0"):
        parse_args(["--warmup-epochs", "-1"])
    assert of(parse_args(["--warmup-epochs", "0"])) == 2e-3
