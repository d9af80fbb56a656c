"""A keeper whose launcher is gone and whose agent does not end. The keeper must kill it."""

import itertools
import os
import signal
import time

from launch import processes
from launch.node import keeper

if __name__ == "__main__":
    processes.become_subreaper()
    agent = os.fork()
    if not agent:
        os.setsid()
        os.fork()
        while True:
            time.sleep(1000)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    keeper.keep(agent, launcher=1 << 22, clock=itertools.count(0, 100).__next__)  # its parent has changed: the launcher is gone
    while processes.descendants(os.getpid()):  # a process that was killed may end a moment later
        processes.reap()
        time.sleep(processes.SWEEP)
