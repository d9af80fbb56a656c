"""Effect of two settings of Horovod on the gradient all-reduce between two processes over Gloo.

`HOROVOD_CYCLE_TIME` is the time in ms that Horovod's thread sleeps between two checks for tensors to reduce. Each check is a round
trip of all ranks. If the ranks compute on the same cores, frequent checks make the all-reduce faster and everything else slower;
the last column shows this for a batch of `benchmarks.scaling`. The recipes set 0.1 on GPUs, and keep Horovod's default of 1 on
CPUs. `HOROVOD_FUSION_THRESHOLD` is the size in bytes of the buffer that fuses small tensors; the recipes keep Horovod's default,
128 MB.
"""

import os
import subprocess
import tempfile

import tensorflow as tf

from benchmarks import scaling
from benchmarks.averaging import CASES
from benchmarks.ranks import command, is_built, medians

CYCLES = ("0.1", "1", "5")  # ms
FUSIONS = {"none": "0", "1 MB": str(1 << 20), "128 MB": str(128 << 20)}


def main() -> None:
    """Prints one line for each pair of settings."""
    if not is_built("settings of Horovod"):
        return
    print(
        "Horovod's settings, 2 ranks, ms          cycle   fusion"
        + "".join(f"{name:>28}" for name in (*CASES, "batch of a convnet"))
    )
    settings = [(cycle, "128 MB") for cycle in CYCLES] + [("1", fusion) for fusion in FUSIONS if fusion != "128 MB"]
    for cycle, fusion in settings:
        environment = {"HOROVOD_CYCLE_TIME": cycle, "HOROVOD_FUSION_THRESHOLD": FUSIONS[fusion]}
        batch, _ = scaling.run("horovod", 2, environment)
        times = [*_run(environment), batch * 1e3]
        print(f"{cycle:>46}{fusion:>9}" + "".join(f"{each:>28.2f}" for each in times), flush=True)


def _run(environment):
    with tempfile.TemporaryDirectory() as logs:
        start = command(2, logs, "benchmarks.horovod_settings")
        done = subprocess.run(start, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split("measured ")[1].split("\n")[0].split()]


def measure() -> None:
    """Measures in one rank."""
    from recipes.common.distribution.horovod_ranks import HorovodRanks

    world = HorovodRanks()
    times = []
    for i, shapes in enumerate(CASES.values()):
        tensors = [tf.random.normal(shape) for shape in shapes]
        average = tf.function(lambda tensors=tensors, i=i: world.average(tensors, f"case_{i}"))
        times += medians(lambda average=average: average()[0].numpy())
    if world.is_chief:
        print("measured", *times, flush=True)


if __name__ == "__main__":
    measure()
