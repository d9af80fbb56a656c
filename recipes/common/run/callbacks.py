"""The callbacks of every recipe, in the required order."""

import argparse
from collections.abc import Sequence

import keras

from callbacks import RunRecord
from recipes.common.arguments import checkpoint_callback
from recipes.common.data import EpochData
from recipes.common.distribution import Distribution
from recipes.common.distribution.compiled_step import JitCompile
from recipes.common.run.initial_weights import InitialWeights
from recipes.common.run.progress_bar import ProgressBar
from recipes.common.run.summary import RunSummary
from recipes.common.run.tensorboard import tensorboard_callback
from recipes.common.run_flags import RunFlags


def training_callbacks(
    args: argparse.Namespace, distribution: Distribution, batches: EpochData, own: Sequence[keras.callbacks.Callback] = ()
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks for `fit`, on every rank.

    Args:
        args: the flags of the recipe.
        distribution: the replicas.
        batches: the training data.
        own: more callbacks of the recipe. They get the logs of all ranks, and what they add to the logs is recorded.
    """
    checkpoint, jit_compile = checkpoint_callback(args), JitCompile(args.jit_compile, distribution)
    if batches.skipped:
        batches.skipped.flag = args.skip_batches
    return [
        jit_compile,  # before all callbacks that ask whether XLA compiles the model
        RunRecord(args.workdir),  # early, so that it measures the time of all other callbacks
        *distribution.callbacks(),  # before all callbacks that read the logs, because they combine the logs of all ranks
        *([batches.skipped] if batches.skipped else []),
        *own,
        tensorboard_callback(args, distribution),  # before the checkpoint, which may end the run
        checkpoint,
        InitialWeights(args.init_from, checkpoint),
        RunFlags(args, distribution.is_chief),
        ProgressBar(distribution, checkpoint, batches.num_batches, args.log_secs),
        # after the checkpoint, because it prints what was restored
        RunSummary(args, distribution, batches, checkpoint, jit_compile, logs_metrics=bool(own)),
    ]
