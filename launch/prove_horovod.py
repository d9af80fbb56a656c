"""Proves that the Horovod that is installed works: two processes meet, and each gets the sum of what both gave.

python -m launch.prove_horovod
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

RANKS = 2
TIMEOUT = 120  # seconds

_RANK = """
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
total = hvd.allreduce(tf.fill([1000], float(10 ** hvd.rank())), op=hvd.Sum)
assert hvd.gloo_enabled() and hvd.size() == 2 and (total.numpy() == 11).all(), (hvd.size(), total)
print(hvd.nccl_built())
"""


def main() -> int:
    """Prints one line. Returns the exit code."""
    began = time.monotonic()
    with ranks(RANKS, ["-c", _RANK], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as processes:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            print(f"{output}error: Horovod does not work: rank {processes.index(process)} failed as above.", file=sys.stderr)
            return 1
    nccl = ", NCCL not proven" if int(outputs[0].split()[-1]) else ""
    print(f"Horovod works: {RANKS} processes reduced a tensor over Gloo{nccl} ({time.monotonic() - began:.0f} s).")
    return 0


@contextlib.contextmanager
def ranks(
    size: int, command: Sequence[str], *, env: dict[str, str] | None = None, **options: Any
) -> Iterator[list[subprocess.Popen]]:
    """Starts the ranks of one run on this machine; those that are left at the end are killed.

    Args:
        size: how many.
        command: what each runs, for the Python that runs this.
        env: their environment; this process's own if None.
        options: for `subprocess.Popen`.
    """
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    slots = get_host_assignments(parse_hosts(f"localhost:{size}"), size)
    server = RendezvousHTTPServer(("127.0.0.1", 0), RendezvousHandler, verbose=False)
    server.init(slots)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    processes = []
    try:
        for rank in range(size):
            environment = {**(os.environ if env is None else env), **rank_environment(rank, size, server.server_address[1])}
            processes.append(subprocess.Popen([sys.executable, *command], env=environment, **options))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        server.shutdown()
        server.server_close()


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a rank on this machine finds in its environment: its place for the recipes, and for Horovod."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "HOROVOD_HOSTNAME": "localhost",
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(size),
        "HOROVOD_LOCAL_RANK": str(rank),
        "HOROVOD_LOCAL_SIZE": str(size),
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_IFACE": "lo",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }


if __name__ == "__main__":
    sys.exit(main())
