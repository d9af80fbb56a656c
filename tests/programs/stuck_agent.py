"""A launcher whose agent does not end, like a process in a write that does not return. The launcher must kill it."""

import itertools
import os
import socket
import time
from types import SimpleNamespace
from typing import Any

from launch import processes
from launch.network.connection import Connection
from launch.run import nodes


def start_agent(config):
    processes.become_subreaper()
    ours, _theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        os.setsid()
        if os.fork():
            time.sleep(1000)
        while True:
            time.sleep(1000)
    return Connection(ours), pid


if __name__ == "__main__":
    config: Any = SimpleNamespace(node=0, per_node=1)
    nodes.start_agent = start_agent
    node = nodes.LocalNode(config, clock=itertools.count(0, 2).__next__)
    node.close()
    while processes.descendants(os.getpid()):  # a process that was killed may end a moment later
        processes.reap()
        time.sleep(processes.SWEEP)
