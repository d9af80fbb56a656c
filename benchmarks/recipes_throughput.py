"""Each recipe, compared with a plain `fit` of the same model on a plain dataset, without our callbacks.

Both train in one process and alternate batch by batch, because a shared machine changes its speed within seconds. Batches count
from the third of an epoch on, with everything between two batches, including saves and curves. The ratio is our speed relative to
the plain one: by wall time, the median over pairs of batches, because some batches stall for seconds; by CPU time, the ratio of the
sums.
"""

import argparse
import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from benchmarks.own_process import in_own_process
from benchmarks.turns import by_turns
from recipes import imagenet_resnet50, transformer_lm
from recipes.common.data import EpochData, training_data
from recipes.common.data.tokens import Windows, standard_library
from recipes.common.distribution import Distribution, get_distribution
from recipes.common.learning_rate import scaled_learning_rate
from recipes.common.run import training_callbacks

EPOCHS = 4  # the first one is warm-up
STRATEGIES = {"single": ["--strategy", "single"], "mirrored": ["--strategy", "mirrored", "--virtual-devices", "2"]}
Wrap = Callable[[keras.optimizers.Optimizer], keras.optimizers.Optimizer]


@dataclass(frozen=True)
class Recipe:
    """A recipe to measure.

    Args:
        batches: batches in an epoch.
        parse_args: parses the flags of the recipe.
        compiled: returns a compiled model, from flags and a function that wraps the optimizer; called under the strategy's scope.
        ours: returns the training data of the recipe, from flags, number of batches, model and replicas.
        plain: returns the same samples as a plain dataset, from flags and number of batches.
    """

    batches: int
    parse_args: Callable[[list[str]], argparse.Namespace]
    compiled: Callable[[argparse.Namespace, Wrap], keras.Model]
    ours: Callable[[argparse.Namespace, int, keras.Model, Distribution], EpochData]
    plain: Callable[[argparse.Namespace, int], tf.data.Dataset]


def _compiled_language_model(args, wrap):
    model = transformer_lm.build_model(transformer_lm.SIZES[args.size], 256)
    optimizer = wrap(transformer_lm.build_optimizer(args.learning_rate, args.gradient_accumulation_steps))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return model


def _windows(args, batches) -> Windows:
    windows, _ = standard_library(args.context)
    return dataclasses.replace(windows, tokens=windows.tokens[: batches * args.global_batch_size * args.context + 1])


def _language_data(args, batches, model, distribution):
    return training_data(_windows(args, batches), model, distribution, global_batch_size=args.global_batch_size, seed=args.seed)


def _plain_language_data(args, batches):
    tokens = _windows(args, batches).tokens.astype("int32")
    x, y = (tokens[i : len(tokens) - 1 + i].reshape(-1, args.context) for i in (0, 1))
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(args.global_batch_size, drop_remainder=True)
    return data.prefetch(tf.data.AUTOTUNE)


def _parse_resnet_args(flags):
    small = ["--data", "digits", "--image-size", "32", "--global-batch-size", "64"]
    return imagenet_resnet50.parse_args([*flags, *small])


def _compiled_resnet(args, wrap):
    model = imagenet_resnet50.build_model(args.image_size, 10)
    start, peak = scaled_learning_rate(args.learning_rate, args.global_batch_size, args.base_batch_size)
    rate = imagenet_resnet50.step_learning_rate(
        start, peak, warmup_batches=round(args.warmup_epochs * 22), batches=args.epochs * 22
    )
    optimizer = wrap(keras.optimizers.SGD(rate, momentum=imagenet_resnet50.MOMENTUM, nesterov=True))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=imagenet_resnet50.LABEL_SMOOTHING)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def _pictures(args, batches, model, distribution):
    data = imagenet_resnet50.load(args)
    size = {"global_batch_size": args.global_batch_size, "seed": args.seed}
    return training_data(data.train, model, distribution, prepare=data.augment, **size)


def _plain_pictures(args, batches):
    data = imagenet_resnet50.load(args)
    files = tf.data.Dataset.from_tensor_slices(data.train.paths)
    records = files.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE).shuffle(len(data.train))
    samples = records.enumerate().map(lambda i, record: data.augment(record, tf.stack([0, i])), num_parallel_calls=tf.data.AUTOTUNE)
    return samples.batch(args.global_batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


RECIPES = {
    "imagenet_resnet50": Recipe(22, _parse_resnet_args, _compiled_resnet, _pictures, _plain_pictures),
    "transformer_lm": Recipe(30, transformer_lm.parse_args, _compiled_language_model, _language_data, _plain_language_data),
}


def measure(name: str, strategy: str) -> np.ndarray:
    """Returns seconds `[pairs, 2, 2]`: of the plain loop and of ours, in wall and CPU time."""
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):  # recipes print a lot
        args = recipe.parse_args([*STRATEGIES[strategy], "--workdir", workdir])
        distribution = get_distribution(args)
        with distribution.scope():
            plain, ours = recipe.compiled(args, lambda optimizer: optimizer), recipe.compiled(args, distribution.optimizer)
        plain_data, data = recipe.plain(args, recipe.batches), recipe.ours(args, recipe.batches, ours, distribution)
        callbacks = training_callbacks(args, distribution, data)
        pairs = by_turns(
            lambda turns: plain.fit(plain_data, epochs=EPOCHS, verbose=0, callbacks=[turns]),
            lambda turns: ours.fit(data, epochs=EPOCHS, verbose=0, callbacks=[*callbacks, turns]),
        )
    return pairs[recipe.batches - 2 :]


def main() -> None:
    """Prints the median time of a batch, and the ratios of the speeds."""
    print("recipes against a plain fit               plain, ms   ours, ms   ratio   ratio by CPU time")
    for name in RECIPES:
        for strategy in STRATEGIES:
            pairs = in_own_process(measure, name, strategy)
            plain, ours = np.median(pairs, axis=0)[:, 0] * 1e3
            ratio = np.median(pairs[:, 0, 0] / pairs[:, 1, 0])
            cpu_ratio = np.divide(*pairs[..., 1].sum(axis=0))
            print(f"{f'{name}, {strategy}':<40}{plain:>11.1f}{ours:>11.1f}{ratio:>8.3f}{cpu_ratio:>20.3f}", flush=True)


if __name__ == "__main__":
    main()
