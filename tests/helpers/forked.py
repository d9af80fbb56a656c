"""Runs Python programs in forks of a process that has imported TensorFlow, because each import takes seconds."""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tensorflow", "keras", "h5py"])  # not our code, which may give each process a name when imported


class Forked:
    """`python COMMAND...` in its own process, with the methods of `subprocess.Popen`.

    Args:
        command: `-m`, a module and its arguments; or the path of a program and its arguments.
        cwd: the working directory.
        env: the environment variables.
    """

    def __init__(self, command, cwd, env):
        self._outputs = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115, deleted with this object
        names = [file.name for file in self._outputs]
        self._process = _SERVER.Process(target=_run, args=([*map(str, command)], str(cwd), env, names), daemon=True)
        self._process.start()
        self.pid: int = self._process.pid  # type: ignore[assignment]

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.output()

    def output(self):
        """Returns what standard output and standard error have received so far."""
        found = []
        for file in self._outputs:
            file.seek(0)
            found.append(file.read())
        return tuple(found)


def _run(command, cwd, env, outputs):
    """Does what Python does with its command line."""
    for descriptor, name in enumerate(outputs, 1):
        with open(name, "w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115, buffered like that of any file
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.orig_argv = [sys.executable, *command]
    try:
        if command[0] == "-m":
            _, module, *args = command
            sys.argv = ["-m", *args]  # as long as Python looks for the module
            sys.path.insert(0, cwd)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            sys.path.insert(0, os.path.dirname(command[0]))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
