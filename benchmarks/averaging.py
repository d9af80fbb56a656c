"""The averaging of gradients against a raw `hvd.grouped_allreduce` of the same tensors, between two processes over Gloo.

The same for the logs of a batch, which all ranks average anyway: what it costs that they tell each other, along with them, who was
asked to leave.
"""

import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from benchmarks.ranks import command, is_built, medians

ROUNDS = 200
CASES = {"MLP, 4 tensors, 3 kB": [(64, 10), (10,), (10, 10), (10,)], "160 tensors, 42 MB": [(128, 1024), (128,)] * 80}


def main() -> None:
    """Prints the medians and their ratio."""
    if not is_built("averaging of gradients"):
        return
    with tempfile.TemporaryDirectory() as logs:
        subprocess.run(command(2, logs, "benchmarks.averaging"), check=True)


def measure() -> None:
    """What each rank runs."""
    import horovod.tensorflow as hvd

    from recipes.common.distribution.horovod_ranks import HorovodRanks

    world = HorovodRanks()
    if world.is_chief:
        print("averaging of gradients, 2 ranks      raw, ms   ours, ms   ratio")
    logs = [np.float32(0.25), np.float32(0.5)]
    alone, with_flags = medians(
        lambda: hvd.allgather(tf.constant([logs], tf.float64), name="logs_alone").numpy(),
        lambda: world.average_logs(logs),
        rounds=ROUNDS,
    )
    for name, shapes in CASES.items():
        tensors = [tf.random.normal(shape) for shape in shapes]
        raw = tf.function(lambda tensors=tensors: hvd.grouped_allreduce(tensors, op=hvd.Average, name="HorovodAllreduce_raw"))
        ours = tf.function(lambda tensors=tensors: world.average(tensors, "grads"))
        of_raw, of_ours = medians(lambda raw=raw: raw()[0].numpy(), lambda ours=ours: ours()[0].numpy(), rounds=ROUNDS)
        if world.is_chief:
            print(f"{name:<34}{of_raw:>10.2f}{of_ours:>11.2f}{of_ours / of_raw:>8.2f}", flush=True)
    if world.is_chief:
        print("logs of a batch, 2 ranks         alone, ms   with who is to leave, ms   more, % of a step of 5 ms")
        print(f"{'2 numbers':<34}{alone:>8.2f}{with_flags:>27.2f}{(with_flags - alone) / 5:>29.1%}", flush=True)


if __name__ == "__main__":
    sys.exit(measure())
