"""Compares the handlers that a rank and its agent seem to have while the rank is still a copy of the agent."""

import os
import signal
import sys
import time

from launch import processes

if __name__ == "__main__":
    for number in processes.FORWARDED:
        signal.signal(number, lambda number, frame: None)
    agent, really = os.getpid(), os.setpgid
    os.setpgid = lambda *group: really(*group) if os.getpid() == agent else time.sleep(1000)  # the rank stays as it is
    rank = processes.spawn(["/bin/true"], {}, 1)
    caught = [number for number in processes.FORWARDED if processes.catches(rank, number)]
    os.kill(rank, signal.SIGKILL)
    mine = [number for number in processes.FORWARDED if processes.catches(agent, number)]
    sys.exit(0 if (caught, mine) == ([], list(processes.FORWARDED)) else f"caught {caught}, and this process {mine}")
