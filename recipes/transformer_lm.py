"""A language model: a transformer with the size of GPT-2 or smaller, on bytes or on a file of tokens.

    python -m recipes.transformer_lm                              # nano, on the sources of Python's standard library
    python -m recipes.transformer_lm --virtual-devices 2          # two replicas on a CPU
    python -m recipes.transformer_lm --data FOLDER                # the bytes of all files in a folder
    sbatch -N 1 --gpus-per-node=8 --time=5-00:00 slurm/horovod.sbatch -m recipes.transformer_lm \
        --size small --data openwebtext/train.bin --mixed-precision bfloat16

Expected result of nano: bits per byte on held-out files, for which `gzip -9` needs 2.03 and `xz -9` 1.73 (Python 3.11; other
versions have other sources). Measured on 2 CPU cores every 698 batches: 2.06, 1.83, 1.69, 1.58, 1.50, and 1.47 at the end of the
default run. `python -m benchmarks language_model` prints the curve.
Expected result of small: not measured here. nanoGPT, whose schedule is used, publishes a loss of about 2.85 on OpenWebText after
four days on eight A100 GPUs (https://github.com/karpathy/nanoGPT, "reproducing GPT-2"), with learned instead of rotary positions.
Its data/openwebtext/prepare.py creates `train.bin` and `val.bin`. The default batch is for eight GPUs. With fewer GPUs, keep the
product:
--global-batch-size 12 --gradient-accumulation-steps 40.

TensorBoard shows the text that the model generates at each validation, under "Text".
Checkpoints: runs/transformer_lm/checkpoints/model_batch_at_{batch}.weights.h5, at intervals chosen by --save-freq auto.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from recipes.common.arguments import Parser, not_negative, parse, positive, recipe_parser
from recipes.common.data import batches_per_epoch, training_data, validation_data
from recipes.common.data.tokens import Windows, bytes_of_folder, standard_library, token_files
from recipes.common.distribution import Distribution, get_distribution
from recipes.common.learning_rate import cosine_learning_rate, scaled_learning_rate
from recipes.common.run import run, training_callbacks
from recipes.common.run.language import Bits, TextSamples


@dataclass(frozen=True)
class Size:
    """A size of the model, with defaults for its training.

    Args:
        blocks, heads, width, context: the dimensions of the transformer; the context in tokens.
        accumulated: batches in one update.
        training: defaults of other flags.
    """

    blocks: int
    heads: int
    width: int
    context: int
    accumulated: int
    training: dict[str, Any]


SIZES = {
    "nano": Size(4, 2, 128, 256, 1, {"epochs": 6, "global_batch_size": 16, "learning_rate": 3e-3, "warmup_epochs": 0.25}),
    # GPT-2 124M, trained like nanoGPT on OpenWebText (9.04 G tokens): 600 000 updates of 480 windows, including 2000 of warm-up.
    "small": Size(12, 12, 768, 1024, 5, {"epochs": 131, "global_batch_size": 96, "learning_rate": 6e-4, "warmup_epochs": 0.43}),
}
GPT2_VOCABULARY = 50257
PADDED_TO = 64  # multiple for the vocabulary, for the matrix units of GPUs
INITIAL_STDDEV = 0.55  # divided by the root of the width; gives GPT-2's 0.02 for a width of 768
ROTARY_BASE = 10_000.0
NORM_EPSILON = 1e-5
WEIGHT_DECAY = 0.1  # per update, times the learning rate; only of matrices that are not embeddings
NOT_DECAYED = ["bias", "beta", "gamma", "embeddings"]  # names of variables
BETA_2 = 0.95
GLOBAL_CLIPNORM = 1.0
LOWEST_RATE = 0.1  # final rate, as a fraction of the peak
EPOCHS_PER_PASS = 4  # validates and generates text after each quarter of the data
PROMPT = 32  # tokens
KEEP_LAST = 3  # checkpoints, of 10 MB (nano) or 2 GB (small) each


def build_model(size: Size, vocabulary: int) -> keras.Model:
    """Returns a network from tokens `[n, t]`, int32, to logits of the next token of each, `[n, t, vocabulary]`.

    Args:
        size: the size of the model.
        vocabulary: the number of tokens in the vocabulary.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, with the rotary positions of
    Su et al. 2021, https://arxiv.org/abs/2104.09864, instead of learned ones: a small model learns to use attention sooner.
    """
    heads, half = [size.heads, size.width // size.heads], size.width // size.heads // 2
    stddev = INITIAL_STDDEV / math.sqrt(size.width)

    def normal(stddev):
        return keras.initializers.RandomNormal(stddev=stddev)

    def dense(units, **options):
        return layers.Dense(units, kernel_initializer=normal(stddev), **options)

    def into_residual():
        return layers.Dense(size.width, kernel_initializer=normal(stddev / math.sqrt(2 * size.blocks)))

    def norm(x):
        return layers.LayerNormalization(epsilon=NORM_EPSILON)(x)

    tokens = keras.Input([None], dtype="int32")
    positions = ops.cast(ops.cumsum(ops.ones_like(tokens[0])) - 1, keras.config.floatx())  # [t]: 0, 1, 2, ...
    frequencies = (ROTARY_BASE ** (-np.arange(half) / half)).astype(keras.config.floatx())
    angles = ops.expand_dims(positions, [1, 2]) * frequencies  # [t, 1, half]
    cosines, sines = ops.cos(angles), ops.sin(angles)

    def rotated(x):
        one, other = ops.split(x, 2, axis=-1)  # [n, t, heads, half] each
        turned = ops.concatenate([one * cosines - other * sines, other * cosines + one * sines], axis=-1)
        return ops.cast(turned, x.dtype)  # the angles are float32 also with --mixed-precision

    # The output layer shares these weights.
    embedding = layers.ReversibleEmbedding(vocabulary, size.width, embeddings_initializer=normal(stddev))
    x = embedding(tokens)  # [n, t, width]
    for _ in range(size.blocks):
        query, key, value = (
            layers.Reshape([-1, *heads])(part)  # [n, t, heads, width / heads]
            for part in ops.split(dense(3 * size.width)(norm(x)), 3, axis=-1)
        )
        attended = ops.dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        x = x + into_residual()(layers.Reshape([-1, size.width])(attended))
        x = x + into_residual()(dense(4 * size.width, activation="gelu")(norm(x)))
    return keras.Model(tokens, embedding(norm(x), reverse=True), name="transformer_lm")


def build_optimizer(learning_rate: Any, gradient_accumulation_steps: int) -> keras.optimizers.Optimizer:
    """Returns AdamW with the settings of GPT-3's smaller models and nanoGPT.

    Args:
        learning_rate: a number or a schedule.
        gradient_accumulation_steps: batches in one update.

    Source: Brown et al. 2020, appendix B, https://arxiv.org/abs/2005.14165.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate,
        weight_decay=WEIGHT_DECAY,
        beta_2=BETA_2,
        epsilon=1e-8,
        global_clipnorm=GLOBAL_CLIPNORM,
        gradient_accumulation_steps=gradient_accumulation_steps if gradient_accumulation_steps > 1 else None,
    )
    optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)  # not saved in files: call it again after load_model
    return optimizer


def load(data: str, context: int, vocabulary: int) -> tuple[Windows, Windows]:
    """Returns the windows for training and for validation.

    Args:
        data: `stdlib`, a folder (for the bytes of its files), or the path of a file of tokens.
        context: tokens in a window.
        vocabulary: the size of the vocabulary of a file of tokens.

    Raises:
        InputError: if the data does not exist, or is too short.
    """
    if data == "stdlib":
        return standard_library(context)
    if os.path.isdir(data):
        return bytes_of_folder(data, context=context)
    return token_files(data, context=context, vocabulary=vocabulary)


def decode_bytes(tokens: np.ndarray) -> str:
    """Decodes UTF-8 bytes, and marks invalid bytes."""
    return bytes(tokens.tolist()).decode(errors="replace").replace("\0", "")


def decode_numbers(tokens: np.ndarray) -> str:
    """Returns the numbers as text, because a file of tokens does not contain their meaning."""
    return " ".join(map(str, tokens.tolist()))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags of all recipes, and of this recipe. The size determines some defaults."""
    sizes = Parser(add_help=False, allow_abbrev=False)
    sizes.add_argument("--size", choices=SIZES, default="nano", help="small: GPT-2 124M, with other defaults")
    size = SIZES[sizes.parse_known_args(argv)[0].size]
    parser = recipe_parser("transformer_lm", "Train a language model.", **size.training, save_freq="auto", keep_last=KEEP_LAST)
    parser.add_argument("--size", choices=SIZES, default="nano", help="small: GPT-2 124M, with other defaults")
    parser.add_argument(
        "--data",
        default="stdlib",
        metavar="stdlib|FOLDER|PATH",
        help="FOLDER: the bytes of its files; PATH: tokens, uint16, with val.bin beside it",
    )
    parser.add_argument(
        "--vocabulary-size", type=positive(int, most=1 << 16), metavar="N", default=GPT2_VOCABULARY, help="for a file of tokens"
    )
    parser.add_argument("--context", type=positive(int), metavar="N", default=size.context, help="tokens in a window")
    parser.add_argument(
        "--gradient-accumulation-steps",
        type=positive(int),
        metavar="N",
        default=size.accumulated,
        help="global batches in one update",
    )
    parser.add_argument(
        "--epochs-per-pass", type=positive(int), metavar="N", default=EPOCHS_PER_PASS, help="validations in a pass over the data"
    )
    parser.add_argument(
        "--sample-tokens", type=not_negative(int), metavar="N", default=200, help="tokens to generate at each validation; 0: none"
    )
    return parse(parser, argv)


def text_callbacks(args: argparse.Namespace, distribution: Distribution, validation: Windows) -> list[keras.callbacks.Callback]:
    """Returns callbacks for losses in bits, and for text samples in TensorBoard."""
    of_bytes = validation.tokens.dtype == "uint8"
    samples = TextSamples(
        distribution,
        os.path.join(args.workdir, "tensorboard", "samples"),
        validation.tokens[:PROMPT],
        length=min(args.context, PROMPT + args.sample_tokens),
        decode=decode_bytes if of_bytes else decode_numbers,
        seed=args.seed,
    )
    return [Bits("bits_per_byte" if of_bytes else "bits_per_token"), *([samples] if args.sample_tokens else [])]


def main(argv: Sequence[str] | None = None) -> keras.Model:
    """Trains a model and returns it."""
    args = parse_args(argv)
    size = dataclasses.replace(SIZES[args.size], context=args.context)
    train, validation = load(args.data, args.context, args.vocabulary_size)
    distribution = get_distribution(args)
    per_epoch = batches_per_epoch(train, args.global_batch_size, args.epochs_per_pass)
    start, peak = scaled_learning_rate(args.learning_rate, args.global_batch_size, args.base_batch_size)
    learning_rate = cosine_learning_rate(
        start, peak, warmup_batches=round(args.warmup_epochs * per_epoch), batches=args.epochs * per_epoch, floor=LOWEST_RATE
    )
    with distribution.scope():
        model = build_model(size, math.ceil(train.vocabulary / PADDED_TO) * PADDED_TO)
        model.compile(
            optimizer=distribution.optimizer(build_optimizer(learning_rate, args.gradient_accumulation_steps)),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=args.steps_per_execution,
        )
        model.optimizer.build(model.trainable_variables)  # otherwise, `fit` traces the train step twice
    batches = training_data(
        train,
        model,
        distribution,
        global_batch_size=args.global_batch_size,
        seed=args.seed,
        epochs_per_pass=args.epochs_per_pass,
    )
    model.fit(
        batches,
        validation_data=validation_data(validation, distribution, global_batch_size=args.global_batch_size),
        epochs=args.epochs,
        verbose=0,
        callbacks=training_callbacks(args, distribution, batches, own=text_callbacks(args, distribution, validation)),
    )
    return model


if __name__ == "__main__":
    run(main)
