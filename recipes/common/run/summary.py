"""The summary of a run on the terminal: its set-up when it begins, its result when it ends."""

import argparse
import os
import shlex
import sys

import keras

from callbacks import GlobalStepCheckpoint, counters_of
from recipes.common.distribution import Distribution
from recipes.common.run.paths import from_here


class RunSummary(keras.callbacks.Callback):
    """Prints the run's set-up when training begins and its result when it ends.

    Args:
        args: the recipe's flags.
        distribution: the replicas.
        batches_per_epoch: how many global batches an epoch has.
        checkpoint: the run's checkpoint callback; it has to stand before this one in the list.
    """

    def __init__(
        self, args: argparse.Namespace, distribution: Distribution, batches_per_epoch: int, checkpoint: GlobalStepCheckpoint
    ):
        super().__init__()
        self._args, self._distribution, self._checkpoint = args, distribution, checkpoint
        self._batches_per_epoch = batches_per_epoch

    def on_train_begin(self, logs=None):
        args, distribution = self._args, self._distribution
        if not distribution.is_chief:
            return
        share = args.global_batch_size // distribution.replicas
        print(f"strategy     {distribution.name}, {_plural(distribution.replicas, 'replica')}: {distribution.hardware}")
        print(f"batch        {args.global_batch_size} samples, {share} on each replica")
        print(f"epochs       {args.epochs} of {self._batches_per_epoch} batches")
        print(f"checkpoints  {from_here(self._checkpoint.template.text)}, every {_every(args.save_freq)}")
        print(f"tensorboard  {args.workdir}/tensorboard")
        print(f"begins       {self._begins()}", flush=True)

    def on_train_end(self, logs=None):
        if not self._distribution.is_chief:
            return
        counts = counters_of(self.model).read()
        resumed = self._checkpoint.resumed_from
        if not logs and resumed:
            end = f"{from_here(resumed.path)} stands at the end of epoch {counts.epoch}"
            print(f"Nothing left to train: {end}, --epochs is {self._args.epochs}.")
            logs = resumed.metrics
        if logs:
            print("result       " + ", ".join(f"{name} {value:.4f}" for name, value in logs.items()))
        print(f"trained on   {counts.batch} batches, {counts.samples} samples, {_plural(counts.step, 'step')}")
        print(f"checkpoint   {from_here(self._checkpoint.newest) if self._checkpoint.newest else 'none'}")
        print(f"watch        {_tool('tensorboard')} --logdir {shlex.quote(self._args.workdir)}")
        print(f"train longer {self._longer(2 * max(self._args.epochs, counts.epoch))}", flush=True)

    def _begins(self):
        resumed = self._checkpoint.resumed_from
        if resumed is None:
            return "from scratch" if self._args.resume_from else "from scratch (--resume never)"
        return f"from {from_here(resumed.path)}: batch {resumed.batch}, epoch {resumed.epoch}"

    def _longer(self, epochs):
        if self._distribution.ranks:
            return f"the same command with --epochs {epochs}"
        given = sys.argv[1:]
        if "--epochs" in given:
            del given[given.index("--epochs") : given.index("--epochs") + 2]
        module = sys.modules["__main__"].__spec__
        what = ["-m", module.name] if module else [sys.argv[0]]
        return shlex.join([_tool("python"), *what, *given, "--epochs", str(epochs)])


def _tool(name):
    """The way to type a program of the environment that runs this."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else path


def _every(save_freq):
    return "epoch" if save_freq == "epoch" else f"{save_freq} batches"


def _plural(count, noun):
    return f"{count} {noun}" + ("" if count == 1 else "s")
