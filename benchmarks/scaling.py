"""Weak scaling on this machine: one replica on one core, compared with two replicas on two cores, mirrored and as ranks.

The model is the convnet of `recipes.mnist`; each replica gets 64 samples of 28 x 28 per batch. Processes take turns; the results
are medians. Efficiency is the number of samples per second, divided by that of one replica and by the number of replicas. The last
column is the share of a batch that an all-reduce of tensors like the gradients takes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from benchmarks.ranks import command, engines, medians

SHARE, BATCHES, ROUNDS = 64, 60, 3
_MARK = "measured "
KINDS = {  # name -> strategy, replicas
    "1 replica, 1 core": ("single", 1),
    "mirrored, 2 replicas": ("mirrored", 2),
    "horovod, 2 ranks": ("horovod", 2),
    "multiworker, 2 ranks": ("multiworker", 2),
}


class Timed(keras.callbacks.Callback):
    """Measures the seconds of each batch, including callbacks."""

    def __init__(self):
        super().__init__()
        self.begins: list[float] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.begins.append(time.perf_counter())

    @property
    def median(self) -> float:
        """Median of the batches after the first twenty."""
        return float(np.median(np.diff(self.begins[20:])))


def measure(strategy: str, replicas: int) -> None:
    """Measures in one process; the chief prints the seconds of a batch and of the all-reduce."""
    from recipes.common.data import Arrays, training_data
    from recipes.common.distribution import get_distribution
    from recipes.mnist import build_model, parse_args

    devices = ["--virtual-devices", str(replicas)] if strategy == "mirrored" else []
    args = parse_args(["--strategy", strategy, "--global-batch-size", str(SHARE * replicas), *devices])
    distribution = get_distribution(args)
    samples = BATCHES * args.global_batch_size
    arrays = Arrays(np.random.default_rng(0).random((samples, 28, 28, 1), "float32"), np.arange(samples) % 10)
    with distribution.scope():
        model = build_model("cnn", (28, 28, 1))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(distribution.optimizer(keras.optimizers.Adam()), loss)
    timed = Timed()
    data = training_data(arrays, model, distribution, global_batch_size=args.global_batch_size, seed=0)
    model.fit(data, verbose=0, callbacks=[*distribution.callbacks(), timed])
    averaging = _averaging(distribution.ranks, model) if distribution.ranks else 0.0
    if distribution.is_chief:
        print(_MARK + json.dumps([timed.median, averaging]), flush=True)


def _averaging(ranks, model):
    gradients = [tf.random.normal(v.shape) for v in model.trainable_variables]
    average = tf.function(lambda: ranks.average(gradients, "alone"))
    return medians(lambda: average()[0].numpy())[0] / 1e3


def run(strategy: str, replicas: int, settings: Mapping[str, str]) -> tuple[float, float]:
    """Returns seconds of a batch and of the all-reduce, in new processes with these environment variables."""
    environment, what = {**os.environ, **settings}, ["benchmarks.scaling", strategy, str(replicas)]
    start = [sys.executable, "-m", *what]
    with tempfile.TemporaryDirectory() as logs:
        if strategy == "single":
            environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
            start = [shutil.which("taskset") or "taskset", "-c", "0", *start]
        elif strategy != "mirrored":
            start = command(replicas, logs, *what)
        done = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.split(_MARK)[1].splitlines()[0])


def main() -> None:
    """Prints one line for each kind."""
    there = ("single", "mirrored", *engines())
    kinds = {name: kind for name, kind in KINDS.items() if kind[0] in there}
    found: dict[str, list] = {name: [] for name in kinds}
    for i in range(ROUNDS):
        for name in list(kinds)[:: 1 if i % 2 else -1]:
            found[name].append(run(*kinds[name], {}))
    print(f"weak scaling, {SHARE} samples per replica    batch, ms   samples/s   efficiency    all-reduce alone, ms   share")
    base = None
    for name, (_, replicas) in kinds.items():
        batch, averaging = np.median(found[name], axis=0)
        rate = SHARE * replicas / batch
        base = base or rate
        alone = f"{averaging * 1e3:>18.2f}{averaging / batch:>12.1%}" if averaging else ""
        print(f"{name:<42}{batch * 1e3:>10.2f}{rate:>12.0f}{rate / base / replicas:>13.2f}{alone}", flush=True)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
