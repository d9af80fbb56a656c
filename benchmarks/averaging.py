"""The averaging of gradients against a raw `hvd.grouped_allreduce` of the same tensors, between two processes over Gloo.

Both are called in turn, each first in every other round, so that what else the machine does falls on both alike. The same for the
logs of a batch, which all ranks average anyway: what it costs that they tell each other, along with them, who was asked to leave.
"""

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

ROUNDS = 200
CASES = {"MLP, 4 tensors, 3 kB": [(64, 10), (10,), (10, 10), (10,)], "160 tensors, 42 MB": [(128, 1024), (128,)] * 80}


def main() -> None:
    """Prints the medians and their ratio."""
    if not is_built("averaging of gradients"):
        return
    with tempfile.TemporaryDirectory() as logs:
        launcher = [sys.executable, "-m", "launch", "--standalone", "--nproc-per-node", "2", "--log-dir", logs]
        subprocess.run([*launcher, "-m", "benchmarks.averaging"], check=True)


def is_built(what: str) -> bool:
    """Whether Horovod is there; says so where it is not."""
    built = importlib.util.find_spec("horovod") is not None
    if not built:
        print(f"{what}: left out, needs `make horovod`")
    return built


def measure() -> None:
    """What each rank runs."""
    import horovod.tensorflow as hvd

    from recipes.common.horovod_ranks import HorovodRanks

    world = HorovodRanks()
    if world.is_chief:
        print("averaging of gradients, 2 ranks      raw, ms   ours, ms   ratio")
    logs = [np.float32(0.25), np.float32(0.5)]
    alone, with_flags = _medians(
        lambda: hvd.allgather(tf.constant([logs], tf.float64), name="logs_alone").numpy(), lambda: world.average_logs(logs)
    )
    for name, shapes in CASES.items():
        tensors = [tf.random.normal(shape) for shape in shapes]
        raw = tf.function(lambda tensors=tensors: hvd.grouped_allreduce(tensors, op=hvd.Average, name="HorovodAllreduce_raw"))
        ours = tf.function(lambda tensors=tensors: world.average(tensors, "grads"))
        of_raw, of_ours = _medians(lambda raw=raw: raw()[0].numpy(), lambda ours=ours: ours()[0].numpy())
        if world.is_chief:
            print(f"{name:<34}{of_raw:>10.2f}{of_ours:>11.2f}{of_ours / of_raw:>8.2f}", flush=True)
    if world.is_chief:
        print("logs of a batch, 2 ranks         alone, ms   with who is to leave, ms   more, % of a step of 5 ms")
        print(f"{'2 numbers':<34}{alone:>8.2f}{with_flags:>27.2f}{(with_flags - alone) / 5:>29.1%}", flush=True)


def _medians(*acts: Callable[[], object]) -> list[float]:
    """Of each, in ms."""
    times: list[list[float]] = [[] for _ in acts]
    for i in range(ROUNDS):
        for act, taken in list(zip(acts, times, strict=True))[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            act()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[5:]) * 1e3 for taken in times]


if __name__ == "__main__":
    sys.exit(measure())
