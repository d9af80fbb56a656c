"""Horovod's ranks under the launcher, on one machine."""

import os
import signal
import sys

import pytest
from launching import need_horovod

TRAINS = """
import os, time
import horovod.tensorflow as hvd
import tensorflow as tf
from launch.world import read_world, report_progress

hvd.init()
world = read_world()
assert (hvd.rank(), hvd.size(), hvd.local_rank()) == (world.rank, world.world_size, world.local_rank)
for batch in range(1, 100_000):
    total = hvd.allreduce(tf.constant([float(hvd.rank() + 1)]), op=hvd.Sum, name="total")
    assert total.numpy() == [3.0]
    report_progress(batch)
    if batch == 20:
        open(f"trained-{world.restarts}-{world.rank}", "w").write(str(os.getpid()))
        if world.restarts:
            break
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_all_start_again(launch):
    need_horovod()
    command = ["--no-python", sys.executable, "-u", "-c", TRAINS]
    run = launch("--nproc-per-node", "2", "--max-restarts", "1", *command, env={"TF_CPP_MIN_LOG_LEVEL": "3"})
    victims = [run.pid(f"trained-0-{rank}") for rank in range(2)]
    os.kill(victims[1], signal.SIGKILL)
    code, _, err = run.finish()
    assert code == 0, err
    assert err.splitlines()[0] == f"rank 1 on {os.uname().nodename}: killed by SIGKILL"
    assert "restart 1 of 1" in err
    assert run.file("trained-1-0") and run.file("trained-1-1")
