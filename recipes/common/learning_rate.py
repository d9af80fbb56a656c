"""The learning rate of a large global batch: linear scaling, and the warm-up that makes it work."""

import argparse

import keras


def scaled_learning_rate(args: argparse.Namespace) -> float:
    """The rate for `--global-batch-size`, in proportion to the batch that `--learning-rate` was chosen for.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1, https://arxiv.org/abs/1706.02677.
    """
    return args.learning_rate * (args.global_batch_size / args.base_batch_size if args.base_batch_size else 1)


def first_learning_rate(args: argparse.Namespace) -> float:
    """Where a warm-up begins: at the rate before scaling, or at the one after it, if that is lower; at 0 where nothing is scaled.

    Source: Goyal et al. 2017, section 2.2.
    """
    return min(args.learning_rate, scaled_learning_rate(args)) if args.base_batch_size else 0.0


def constant_learning_rate(
    args: argparse.Namespace, batches_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The scaled rate, reached over the first `--warmup-epochs` in equal steps from batch to batch.

    Args:
        args: the recipe's flags.
        batches_per_epoch: updates of an epoch.

    Returns:
        A number, or a schedule that is Keras's own, so that whole models load without this repository.
    """
    peak = scaled_learning_rate(args)
    if not args.warmup_epochs:
        return peak
    return keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=first_learning_rate(args),
        decay_steps=max(1, round(args.warmup_epochs * batches_per_epoch)),
        end_learning_rate=peak,
        power=1.0,
    )


def cosine_learning_rate(
    args: argparse.Namespace, batches_per_epoch: int, *, floor: float = 0.0
) -> keras.optimizers.schedules.CosineDecay:
    """The scaled rate, reached as in `constant_learning_rate`, and lowered along half a cosine until the last batch.

    The position is the number of batches, also where gradients are accumulated. It belongs to `--epochs`: a run that goes on
    with another number of them is on another curve.

    Args:
        args: the recipe's flags.
        batches_per_epoch: of an epoch.
        floor: where the curve ends, as a part of the peak.

    Returns:
        A schedule that is Keras's own, so that whole models load without this repository.

    Source: Loshchilov and Hutter 2016, "SGDR", https://arxiv.org/abs/1608.03983.
    """
    peak = scaled_learning_rate(args)
    warmup = round(args.warmup_epochs * batches_per_epoch)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=first_learning_rate(args) if warmup else peak,
        decay_steps=max(1, args.epochs * batches_per_epoch - warmup),
        alpha=floor,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )
