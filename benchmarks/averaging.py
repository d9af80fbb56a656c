"""Gradient all-reduce between two processes: ours, and the stock function of each engine on the same tensors.

Horovod's stock function is `hvd.grouped_allreduce`, over Gloo; TensorFlow's is `all_reduce` in a step that
`MultiWorkerMirroredStrategy` runs.

Also measures the average of the logs of a batch, with and without the stop requests that ranks send along.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from benchmarks.ranks import command, engines, medians

ROUNDS = 200
CASES = {"MLP, 4 tensors, 3 kB": [(64, 10), (10,), (10, 10), (10,)], "160 tensors, 42 MB": [(128, 1024), (128,)] * 80}


def main() -> None:
    """Prints the medians and their ratio, for each engine."""
    for engine in engines():
        with tempfile.TemporaryDirectory() as logs:
            subprocess.run(command(2, logs, "benchmarks.averaging", engine), check=True)


def measure(engine: str) -> None:
    """Measures in one rank."""
    from recipes.common.distribution.setup import ENGINES

    world = ENGINES[engine]()
    reduce = _of_horovod() if engine == "horovod" else _of_strategy(world.strategy)
    if world.is_chief:
        print(f"gradient all-reduce, {engine + ', 2 ranks':<21}stock, ms   ours, ms   ratio")
    for name, shapes in CASES.items():
        tensors = [tf.random.normal(shape) for shape in shapes]
        raw = tf.function(lambda tensors=tensors: reduce(tensors))
        ours = tf.function(lambda tensors=tensors: world.average(tensors, "grads"))
        of_raw, of_ours = medians(lambda raw=raw: raw()[0].numpy(), lambda ours=ours: ours()[0].numpy(), rounds=ROUNDS)
        if world.is_chief:
            print(f"{name:<42}{of_raw:>10.2f}{of_ours:>11.2f}{of_ours / of_raw:>8.2f}", flush=True)
    logs = [np.float32(0.25), np.float32(0.5)]
    alone, with_flags = medians(lambda: world.gather_numbers(logs), lambda: world.average_logs(logs), rounds=ROUNDS)
    if world.is_chief:
        print("logs of a batch, 2 ranks         alone, ms   with stop requests, ms   added, % of a step of 5 ms")
        print(f"{'2 numbers':<34}{alone:>8.2f}{with_flags:>27.2f}{(with_flags - alone) / 5:>29.1%}", flush=True)


def _of_horovod() -> Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]:
    import horovod.tensorflow as hvd

    return lambda tensors: hvd.grouped_allreduce(tensors, op=hvd.Average, name="HorovodAllreduce_raw")


def _of_strategy(strategy: tf.distribute.Strategy) -> Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]:
    def step(tensors):
        return tf.distribute.get_replica_context().all_reduce("mean", [tf.identity(tensor) for tensor in tensors])

    return lambda tensors: strategy.run(step, args=(tensors,))


if __name__ == "__main__":
    measure(sys.argv[1])
