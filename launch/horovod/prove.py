"""Tests the installed Horovod: two processes reduce a tensor, and each checks the sum.

    python -m launch.horovod.prove

Runs once on the CPU, over Gloo. If Horovod was built with NCCL, runs again with one process on each of up to two GPUs.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launch import exit_codes
from launch.command_line.devices import gpus

RANKS = 2
TIMEOUT = 120  # seconds

_RANK = """
import tensorflow as tf
import horovod.tensorflow as hvd
gpus = tf.config.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
hvd.init()
if gpus:
    tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
with tf.device("/gpu:0" if gpus else "/cpu:0"):
    total = hvd.allreduce(tf.fill([1000], float(10 ** hvd.rank())), op=hvd.Sum)
expected = sum(10 ** rank for rank in range(hvd.size()))
assert hvd.gloo_enabled() and (total.numpy() == expected).all(), (hvd.size(), total)
print("with NCCL" if hvd.nccl_built() else "without NCCL")
"""


def main() -> int:
    """Prints one line for each test. Returns the exit code."""
    output = _reduce(RANKS, "Gloo", {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"})
    if output is None:
        return exit_codes.FAILED
    if "with NCCL" in output:
        here = gpus(os.environ)
        if not here:
            print("NCCL is not tested: this machine has no GPU.")
        elif _reduce(min(RANKS, len(here)), "NCCL", dict(os.environ)) is None:
            return exit_codes.FAILED
    return exit_codes.DONE


def _reduce(ranks, transport, environment):
    """Lets ranks reduce a tensor. Returns the output of rank 0, or None after a failure."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "screen"), "w+") as screen:
        launcher = [sys.executable, "-m", "launch", "--standalone", "--nproc-per-node", str(ranks), "--log-dir", folder]
        command = [*launcher, "--no-python", sys.executable, "-c", _RANK]
        try:
            failed = subprocess.run(command, env=environment, stdout=screen, stderr=screen, timeout=TIMEOUT).returncode
            why = "a rank failed, see above"
        except subprocess.TimeoutExpired:  # subprocess has killed the launcher, and the ranks end with it
            failed, why = 1, f"the processes did not meet within {TIMEOUT} s"
        if failed:
            screen.seek(0)
            print(f"{screen.read()}error: Horovod does not work over {transport}: {why}.", file=sys.stderr)
            return None
        processes = f"{ranks} process{'' if ranks == 1 else 'es'}"
        print(f"Horovod works: {processes} reduced a tensor over {transport} ({time.monotonic() - began:.0f} s).")
        return Path(folder, "rank-0.log").read_text()


if __name__ == "__main__":
    sys.exit(main())
