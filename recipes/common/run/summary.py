"""Summary of a run on the terminal: its set-up at the beginning, its result at the end."""

import argparse
import importlib.util
import math
import os
import shlex
import sys

import keras

from callbacks import GlobalStepCheckpoint, counters_of
from callbacks.counting.logged_metrics import check_metrics
from callbacks.model.fit_hooks import fit_hooks_of
from callbacks.saving.disk_room import in_units, state_size
from recipes.common.data import EpochData
from recipes.common.distribution import Distribution
from recipes.common.distribution.compiled_step import JitCompile
from recipes.common.run.paths import from_here


class RunSummary(keras.callbacks.Callback):
    """Prints the set-up of a run when training begins, and its result when training ends.

    Args:
        args: the flags of the recipe.
        distribution: the replicas.
        batches: the training data.
        checkpoint: the checkpoint callback of the run; it must come before this callback in the list.
        jit_compile: what XLA compiles; it must come before this callback too.
        logs_metrics: whether a callback of the recipe adds metrics to the logs. If not, a checkpoint name with a metric that the
            model does not have is refused before the first batch.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        distribution: Distribution,
        batches: EpochData,
        checkpoint: GlobalStepCheckpoint,
        jit_compile: JitCompile,
        logs_metrics: bool = False,
    ):
        super().__init__()
        self._args, self._distribution, self._checkpoint = args, distribution, checkpoint
        self._jit_compile = jit_compile
        self._batches, self._logs_metrics = batches, logs_metrics

    def on_train_begin(self, logs=None):
        args, distribution, template = self._args, self._distribution, self._checkpoint.template
        if template.metrics and not self._logs_metrics:
            fit_hooks_of(self.model).before_first_batch(lambda: check_metrics(template, self.model, validates=True))
        if not distribution.is_chief:
            return
        share = args.global_batch_size // distribution.replicas
        print(f"strategy     {distribution.name}, {_plural(distribution.replicas, 'replica')}: {distribution.hardware}")
        print(f"determinism  {_determinism(args.deterministic)}")
        print(f"batch        {args.global_batch_size} samples, {share} on each replica")
        print(f"epochs       {args.epochs}, {_plural(self._batches.num_batches, 'batch')} each")
        print(f"learning     rate {_rate(self.model.optimizer)}")
        if self._jit_compile.compiles:
            print(f"jit-compile  {self._jit_compile.compiles}")
        print(f"checkpoints  {from_here(template.text)}, {_how_often(args.save_freq)}, {self._disk()}")
        print(f"tensorboard  {args.workdir}/tensorboard")
        print(f"begins       {self._begins()}", flush=True)

    def on_train_end(self, logs=None):
        if not self._distribution.is_chief:
            return
        counts = counters_of(self.model).read()
        resumed = self._checkpoint.resumed_from
        if not logs and resumed:
            logs = resumed.metrics
        if logs:
            print("result       " + ", ".join(f"{name} {value:.4f}" for name, value in logs.items()))
        if self._batches.skipped and self._batches.skipped.ranges:
            print(f"left out     batches {self._batches.skipped.text} of the order")
        print(f"trained on   {counts.batch} batches, {counts.samples} samples, {_plural(counts.step, 'step')}")
        print(f"checkpoint   {from_here(self._checkpoint.newest) if self._checkpoint.newest else 'none'}")
        print(f"watch        {_watch(self._args.workdir)}")
        print(f"train longer {self._longer(2 * max(self._args.epochs, counts.epoch))}", flush=True)

    def _disk(self):
        size, most = state_size(self.model), self._checkpoint.disk_room.most_files
        return f"{in_units(size)} each" + (f", up to {in_units(most * size)} in all" if math.isfinite(most) else "")

    def _begins(self):
        resumed = self._checkpoint.resumed_from
        if resumed is None:
            if self._args.init_from:
                return f"with the weights of {from_here(self._args.init_from)}"
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
    """Returns the path of a program in this Python environment."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else path


def _watch(workdir):
    if importlib.util.find_spec("tensorboard") is None:
        return "with TensorBoard, which is not installed: pip install tensorboard"
    return f"{_tool('tensorboard')} --logdir {shlex.quote(workdir)}"


def _how_often(save_freq):
    if save_freq == "auto":
        return "at intervals chosen for at most 1 % of the time"
    return "every epoch" if save_freq == "epoch" else f"every {save_freq} batches"


def _determinism(is_on):
    """Returns what a restart repeats."""
    if is_on:
        return "on: after a restart, the state and all later batches are the same bit for bit"
    return "off: a restart restores the state bit for bit; later batches may differ by rounding (--deterministic avoids it)"


def _rate(optimizer):
    """Returns the learning rate of the next batch, and the name of its schedule."""
    schedule = optimizer.get_config().get("learning_rate")
    name = f", {schedule['class_name']}" if isinstance(schedule, dict) else ""
    return f"{float(keras.ops.convert_to_numpy(optimizer.learning_rate)):.6g}{name}"


def _plural(count, noun):
    return f"{count} {noun}" + ("" if count == 1 else "es" if noun.endswith("ch") else "s")
