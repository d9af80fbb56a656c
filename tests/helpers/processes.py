"""Runs recipes and test programs in real processes, with the environment of a user's shell."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from forked import Forked

ROOT = Path(__file__).parents[2]

# The tests count on CPU devices, also where there are GPUs: tests/test_gpu.py shows those to what it starts.
if os.environ.get("TESTS_USE_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
USER_ENVIRONMENT = dict(os.environ)  # the environment of a user's process, before this process silences TensorFlow
if "PYTEST_XDIST_WORKER" in os.environ:  # the process that started this one has done so
    USER_ENVIRONMENT.pop("TF_CPP_MIN_LOG_LEVEL", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PROGRAMS = ROOT / "tests" / "programs"
PROGRAM_ENVIRONMENT = {**USER_ENVIRONMENT, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}


def run_program(name, *args, **options):
    """Runs a program of tests/programs. Returns its exit code and output."""
    options = {"cwd": ROOT, "env": PROGRAM_ENVIRONMENT, "capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, PROGRAMS / name, *map(str, args)], **options)


def fork_program(name, *args):
    """Runs a program like `run_program`, in a fork of a process that has imported TensorFlow, because an import takes seconds."""
    return fork_python([PROGRAMS / name, *args], cwd=ROOT, env=PROGRAM_ENVIRONMENT)


def fork_python(words, cwd, env):
    """Runs `python WORDS...` in a fork of a process that has imported TensorFlow. Returns its exit code and output."""
    process = Forked(words, cwd=cwd, env=env)
    out, errors = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


def run_python(words, cwd, env):
    """Runs `python WORDS...`, a recipe in a fork. Returns its standard output."""
    if words[1].startswith("recipes."):
        done = fork_python(words, cwd, env)
    else:
        done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_until(run, copy, batch):
    """Copies a run's directory without the checkpoints after `batch`, as if it had been killed before it saved them."""

    def copy_file(source, target):
        number = re.search(r"model_\D*(\d{5})\.", source)
        if not number:
            shutil.copy(source, target)
        elif int(number[1]) <= batch:
            os.link(source, target)  # a link, because a checkpoint may be large, and nothing modifies it

    shutil.copytree(run, copy, copy_function=copy_file)


def discard_after(checkpoint):
    """Deletes the checkpoints after this one, which a run has written if it was killed late."""
    for late in checkpoint.parent.glob("*.weights.h5"):
        if late.name > checkpoint.name:
            late.unlink()


def written_or_in_writing(checkpoint):
    """Returns a condition: a checkpoint is written, or exists, if the write was over before a slow machine looked."""
    return lambda: any(checkpoint.parent.glob(f".tmp-*@{checkpoint.name}")) or checkpoint.exists()


class Process:
    """A recipe in its own process.

    Args:
        args: its flags.
        imports: whether it imports TensorFlow itself, which takes seconds, and is not a fork of a process that has done so.
        cwd: the working directory.
        env: more environment variables.
        module: the recipe.
    """

    def __init__(self, *args, imports=False, cwd=ROOT, env=None, module="recipes.mnist"):
        command, environment = ["-m", module, *map(str, args)], {**USER_ENVIRONMENT, **(env or {})}
        self.process: Forked | subprocess.Popen[str]
        if imports:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=cwd,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            self.process = Forked(command, cwd=cwd, env=environment)

    def finish(self, timeout=300):
        """Waits for the end: (exit code, standard output, standard error)."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def kill_when(self, condition, timeout=300):
        """Sends SIGKILL as soon as a condition is true."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended by itself: {self.process.communicate()}"
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.0005)
        self.process.kill()
        self.process.communicate()
