"""Proves that the Horovod that is installed works: two processes meet, and each gets the sum of what both gave.

python -m launch.prove_horovod
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANKS = 2
TIMEOUT = 120  # seconds

_RANK = """
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
total = hvd.allreduce(tf.fill([1000], float(10 ** hvd.rank())), op=hvd.Sum)
assert hvd.gloo_enabled() and hvd.size() == 2 and (total.numpy() == 11).all(), (hvd.size(), total)
print("with NCCL" if hvd.nccl_built() else "without NCCL")
"""


def main() -> int:
    """Prints one line. Returns the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "screen"), "w+") as screen:
        launcher = [sys.executable, "-m", "launch", "--standalone", "--nproc-per-node", str(RANKS), "--log-dir", folder]
        command = [*launcher, "--no-python", sys.executable, "-c", _RANK]
        try:
            failed = subprocess.run(command, stdout=screen, stderr=screen, timeout=TIMEOUT).returncode
            why = "a rank failed as above"
        except subprocess.TimeoutExpired:  # the launcher was killed, and its ranks end with it
            failed, why = 1, f"after {TIMEOUT} s the processes have not met"
        if failed:
            screen.seek(0)
            print(f"{screen.read()}error: Horovod does not work: {why}.", file=sys.stderr)
            return 1
        nccl = ", NCCL not proven" if "with NCCL" in Path(folder, "rank-0.log").read_text() else ""
    print(f"Horovod works: {RANKS} processes reduced a tensor over Gloo{nccl} ({time.monotonic() - began:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
