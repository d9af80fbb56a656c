"""Handwritten digits: the recipe to read first.

    python -m recipes.mnist                              # the included digits, on one CPU or all GPUs
    python -m recipes.mnist --virtual-devices 2          # two replicas on a CPU
    python -m recipes.mnist --data mnist --epochs 5      # MNIST itself, downloaded by Keras

Expected result: validation accuracy 0.98 on the included digits after 12 epochs (README, "Recipes").
Checkpoints: runs/mnist/checkpoints/model_batch_at_00050.weights.h5, 00100, ...
"""

import argparse
import os
from collections.abc import Sequence

import keras
import numpy as np

from callbacks import InputError
from recipes.common.arguments import parse, recipe_parser
from recipes.common.data import Arrays, batches_per_epoch, training_data, validation_data
from recipes.common.data.digits import BRIGHTEST, load_digits
from recipes.common.distribution import get_distribution
from recipes.common.learning_rate import constant_learning_rate, scaled_learning_rate
from recipes.common.run import run, training_callbacks

CLASSES = 10
DROPOUT = 0.4
BATCH_NORM_MOMENTUM = 0.9  # a run has a few hundred batches, too few for Keras's 0.99


def build_model(kind: str, image_shape: tuple[int, int, int]) -> keras.Model:
    """Returns a network from images `[n, height, width, 1]` in [0, 1] to logits `[n, 10]`.

    Args:
        kind: `mlp`, the published example (784-10-10 on MNIST), or `cnn`, a small convnet.
        image_shape: height, width, 1.
    """
    layers = keras.layers
    if kind == "mlp":
        body = [layers.Flatten(), layers.Dense(10, activation="relu")]
    else:
        body = [
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM),
            layers.ReLU(),
            layers.Conv2D(64, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM),
            layers.ReLU(),
            layers.MaxPooling2D(),  # [n, height / 2, width / 2, 64]
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(DROPOUT),
        ]
    logits = layers.Dense(CLASSES, dtype=keras.config.floatx())  # float32 also with --mixed-precision
    return keras.Sequential([keras.Input(image_shape), *body, logits], name=kind)


def load(data: str) -> tuple[Arrays, Arrays]:
    """Returns training and validation images `[n, height, width, 1]` in [0, 1] with labels `[n]`, int64.

    Args:
        data: `digits` (1797 images of 8 x 8, every fifth for validation), `mnist` (70000 images of 28 x 28), or the path of a
            file in the format of `mnist.npz`.

    Raises:
        InputError: if the data does not exist, or has another format.
    """
    if data == "digits":
        (train, held_out), brightest = load_digits(), BRIGHTEST
    else:
        (train, held_out), brightest = _download() if data == "mnist" else _read_npz(data), 255
    return _arrays(*train, brightest), _arrays(*held_out, brightest)


def _arrays(images, labels, brightest):
    return Arrays((images / brightest).astype(keras.config.floatx())[..., np.newaxis], labels.astype("int64"))


def _download():
    try:
        return keras.datasets.mnist.load_data()
    except Exception as error:
        raise InputError(f"--data mnist cannot be downloaded: {error}. Give the path of an mnist.npz file.") from None


def _read_npz(path):
    expected = "x_train, x_test uint8 [n, height, width], 2 x 2 or larger, and y_train, y_test [n], classes 0 to 9"
    if os.path.exists(path) and not os.path.isfile(path):  # opening a FIFO would block forever
        raise InputError(f"--data {path} is not a regular file. Give an npz file with {expected}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except FileNotFoundError:
        raise InputError(f"--data must be digits, mnist, or the path of an mnist.npz file. There is no file {path!r}.") from None
    except Exception as error:
        raise InputError(f"--data {path} is not an npz file with {expected}: {error}") from None
    for images, labels in (("x_train", "y_train"), ("x_test", "y_test")):
        x, y = arrays[images], arrays[labels]
        fits = (
            x.ndim == 3
            and x.dtype == "uint8"
            and len(x)
            and min(x.shape[1:]) > 1
            and y.shape == x.shape[:1]
            and y.dtype.kind in "iu"
        )
        if not fits or x.shape[1:] != arrays["x_train"].shape[1:] or not 0 <= y.min() <= y.max() < CLASSES:
            raise InputError(
                f"--data {path} must have {expected}. "
                f"Received: {images} {x.dtype} {list(x.shape)}, {labels} {y.dtype} {list(y.shape)}."
            )
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags of all recipes, and of this recipe."""
    parser = recipe_parser("mnist", "Train on handwritten digits.", epochs=12, global_batch_size=64, learning_rate=2e-3)
    parser.add_argument("--model", choices=("cnn", "mlp"), default="cnn", help="cnn: a small convnet; mlp: one hidden layer of 10")
    parser.add_argument("--data", default="digits", metavar="digits|mnist|PATH", help="PATH: a file in the format of mnist.npz")
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> keras.Model:
    """Trains a model and returns it."""
    args = parse_args(argv)
    train, validation = load(args.data)
    distribution = get_distribution(args)
    warmup_batches = round(args.warmup_epochs * batches_per_epoch(train, args.global_batch_size))
    start, peak = scaled_learning_rate(args.learning_rate, args.global_batch_size, args.base_batch_size)
    learning_rate = constant_learning_rate(start, peak, warmup_batches=warmup_batches)
    with distribution.scope():
        model = build_model(args.model, train.x.shape[1:])
        model.compile(
            optimizer=distribution.optimizer(keras.optimizers.Adam(learning_rate)),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=args.steps_per_execution,
        )
        model.optimizer.build(model.trainable_variables)  # otherwise, `fit` traces the train step twice
    batches = training_data(train, model, distribution, global_batch_size=args.global_batch_size, seed=args.seed)
    model.fit(
        batches,
        validation_data=validation_data(validation, distribution, global_batch_size=args.global_batch_size),
        epochs=args.epochs,
        verbose=0,
        callbacks=training_callbacks(args, distribution, batches),
    )
    return model


if __name__ == "__main__":
    run(main)
