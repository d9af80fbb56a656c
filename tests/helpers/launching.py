"""Helpers for tests of the launcher: starts a launcher, and finds every process that a run has started."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from processes import PROGRAMS, ROOT

from launch.horovod.build import TOOLS, how_to_install

FOREIGN = ("SLURM_", "LAUNCH_", "TF_CPP_MIN_LOG_LEVEL")  # variables that this process has and a user's process lacks
PATIENCE = 180  # seconds for what takes one on an idle machine; what must be ended lasts longer


def wait_for(condition, what, timeout=PATIENCE):
    """Polls until a condition is true. Returns its result."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.01)
    return found


def call(port):
    """Connects to a port of this host."""
    return socket.create_connection(("127.0.0.1", port))


def listens(port):
    """Returns whether a process listens on a port."""
    with contextlib.suppress(OSError), call(port):
        return True


def skip(what, reason):
    """Skips a test, or fails it if REQUIRE_`what` is set."""
    if os.environ.get(f"REQUIRE_{what}") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need_horovod():
    """Skips a test if Horovod is not installed."""
    if importlib.util.find_spec("horovod") is None:
        skip("HOROVOD", f"Horovod is not installed: make horovod. It needs a compiler. {how_to_install(TOOLS)}")


ENGINES = ("horovod", "multiworker")  # of several ranks


def need(engine):
    """Skips a test if an engine is not installed."""
    if engine == "horovod":
        need_horovod()


class Launch:
    """`python -m launch ...` in its own process group, with a mark in the environment of all processes that it starts."""

    def __init__(self, *args, cwd, env=None, prefix=(), **options):
        self.mark = uuid.uuid4().hex
        self.cwd = Path(cwd)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {"PYTHONPATH": str(ROOT), "LAUNCH_TEST_MARK": self.mark, **(env or {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [*prefix, sys.executable, "-m", "launch", *map(str, args)]
        self.process = subprocess.Popen(command, cwd=cwd, env=environment, process_group=0, **options)

    def finish(self, timeout=PATIENCE):
        """Waits for the end: (exit code, standard output, standard error)."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def processes(self):
        """Returns process id -> command line of all processes with the mark except the launcher."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes() and int(path.name) != self.process.pid:
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def agent(self):
        """The process id of the agent."""
        return next(pid for pid, command in self.processes().items() if "-m launch" in command)

    def none_left(self):
        """Returns whether no process with the mark is alive."""
        wait_for(lambda: not self.processes(), f"the end of {self.processes()}")
        return True

    def file(self, name):
        """Waits for a file that a rank writes. Returns its text."""
        path = self.cwd / name
        wait_for(lambda: path.exists() and path.read_text().strip(), name)
        return path.read_text().strip()

    def pid(self, name):
        """Returns a process id that a rank wrote to a file."""
        return int(self.file(name))

    def rank(self, number):
        """Returns the process id of a rank: the process with its environment that leads a process group."""
        mine = f"\0RANK={number}\0".encode()

        def leaders():
            with contextlib.suppress(OSError):  # one has just ended
                pids = [pid for pid in self.processes() if mine in Path(f"/proc/{pid}/environ").read_bytes()]
                return [pid for pid in pids if os.getpgid(pid) == pid]

        return wait_for(leaders, f"rank {number}")[0]

    def log(self, rank):
        """Returns the log of a rank."""
        (path,) = self.cwd.rglob(f"rank-{rank}.log")
        return path.read_text()

    def end(self):
        """Ends all remaining processes."""
        for pid in [*self.processes(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def launch(tmp_path):
    """Starts launchers in a temporary folder, and ends remaining processes."""
    started = []

    def start(*args, cwd=tmp_path, **options):
        started.append(Launch(*args, cwd=cwd, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


def sh(script):
    """Returns the arguments to run a shell script in each rank."""
    return "--no-python", "sh", "-c", script


def python(script):
    """Returns the arguments to run Python code in each rank, in a Python that starts fast."""
    return "--no-python", sys.executable, "-S", "-u", "-c", script


def program(name, *args):
    """Returns the arguments to run a program of tests/programs in each rank, in a Python that starts fast."""
    return "--no-python", sys.executable, "-S", PROGRAMS / name, *args
