"""The two trainings that `benchmarks.gpu` measures, and two small ones that run the same code on a CPU within seconds."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from recipes import imagenet_resnet50, mnist, transformer_lm


@dataclass(frozen=True)
class Workload:
    """A recipe's model on data in memory, so that reading files is not measured.

    Args:
        unit: `images` or `tokens`.
        batch: samples per batch, for a GPU with 80 GB of memory.
        parse_args: parses the recipe's flags.
        flags: the flags of this training.
        model: builds the recipe's model.
        samples: returns inputs `[samples, ...]` and labels.
        optimizer, loss: build the recipe's optimizer and loss.
    """

    unit: str
    batch: int
    parse_args: Callable[[list[str]], argparse.Namespace]
    flags: list[str]
    model: Callable[[], keras.Model]
    samples: Callable[[], tuple[np.ndarray, np.ndarray]]
    optimizer: Callable[[], keras.optimizers.Optimizer]
    loss: Callable[[], Any]


def _random_images(count, size):
    random = np.random.default_rng(0)
    labels = np.zeros([count, imagenet_resnet50.CLASSES], "float32")
    labels[np.arange(count), random.integers(0, imagenet_resnet50.CLASSES, count)] = 1
    return random.integers(0, 256, [count, size, size, 3], "uint8"), labels


def _random_tokens(count, context, vocabulary):
    tokens = np.random.default_rng(0).integers(0, vocabulary, [count, context + 1], "int32")
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def _digits():
    train, _ = mnist.load("digits")
    return train.x, train.y


def _sparse_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


WORKLOADS = {
    "ResNet-50": Workload(
        "images",
        256,
        imagenet_resnet50.parse_args,
        ["--synthetic-data"],
        lambda: imagenet_resnet50.build_model(224, imagenet_resnet50.CLASSES),
        lambda: _random_images(1024, 224),
        lambda: keras.optimizers.SGD(0.1, momentum=imagenet_resnet50.MOMENTUM, nesterov=True),
        lambda: keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=imagenet_resnet50.LABEL_SMOOTHING),
    ),
    "GPT-2 124M": Workload(
        "tokens",
        16,
        transformer_lm.parse_args,
        ["--size", "small", "--gradient-accumulation-steps", "1"],
        lambda: transformer_lm.build_model(transformer_lm.SIZES["small"], 50304),
        lambda: _random_tokens(512, 1024, transformer_lm.GPT2_VOCABULARY),
        lambda: transformer_lm.build_optimizer(6e-4, 1),
        _sparse_loss,
    ),
    "digits": Workload(
        "images",
        64,
        mnist.parse_args,
        ["--model", "mlp"],
        lambda: mnist.build_model("mlp", (8, 8, 1)),
        _digits,
        lambda: keras.optimizers.Adam(2e-3),
        _sparse_loss,
    ),
    "transformer": Workload(
        "tokens",
        4,
        transformer_lm.parse_args,
        [],
        lambda: transformer_lm.build_model(transformer_lm.Size(1, 2, 16, 32, 1, {}), 256),
        lambda: _random_tokens(64, 32, 256),
        lambda: transformer_lm.build_optimizer(3e-3, 1),
        _sparse_loss,
    ),
}
LARGE, TINY = ("ResNet-50", "GPT-2 124M"), ("digits", "transformer")
