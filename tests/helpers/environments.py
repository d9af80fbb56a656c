"""Creates environments with older versions of TensorFlow and Keras, once each, in `.venv-versions`."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import ROOT


class Pair(NamedTuple):
    """Releases of TensorFlow and Keras from the same time, such as `"2.17"` and `"3.5"`."""

    tensorflow: str
    keras: str

    def __str__(self):
        return f"tensorflow-{self.tensorflow}-keras-{self.keras}"


PAIRS = [
    Pair("2.17", "3.5"),
    Pair("2.17", "3.6"),
    Pair("2.18", "3.8"),
    Pair("2.19", "3.9"),
    Pair("2.20", "3.12"),
    Pair("2.21", "3.14"),
    Pair("2.21", "3.15"),
]
OLDEST, NEWEST = PAIRS[0], PAIRS[-1]
_DIRECTORY = ROOT / ".venv-versions"
_LAST_PYTHON = {"2.17": (3, 12), "2.18": (3, 12), "2.19": (3, 12)}  # later ones have wheels for 3.13


def python_of(pair: Pair) -> str:
    """Returns the Python of an environment. Creates the environment if it is missing: 20 seconds to minutes, and 1.3 GB.

    Without a network, the test is skipped, or fails if REQUIRE_VERSIONS is set.
    """
    if is_here(pair):
        return sys.executable
    environment = _DIRECTORY / str(pair)
    installed, python = environment / "installed", str(environment / "bin" / "python")
    if not installed.exists():  # the stamp comes last, because pip regards an incomplete package as installed
        _run(_python_for(pair), "-m", "venv", "--clear", environment)
        _run(python, "-m", "pip", "install", "--quiet", "--no-input", "--retries", "1", *_requirements(pair))
        installed.touch()
    return python


def is_here(pair: Pair) -> bool:
    """Whether this process uses this pair."""
    return all(version(name).startswith(f"{wanted}.") for name, wanted in zip(("tensorflow", "keras"), pair, strict=True))


def _requirements(pair):
    here = ("pytest", "rich", "xxhash")
    pinned = [line.split("#")[0].strip() for line in Path(ROOT, "requirements.txt").read_text().splitlines()]
    tensorflow = "tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow"  # half the size
    wanted = [f"{tensorflow}=={pair.tensorflow}.*", f"keras=={pair.keras}.*", f"tensorboard=={pair.tensorflow}.*"]
    return [*wanted, "h5py", "ml-dtypes", *(line for line in pinned if line.startswith(here))]


def _python_for(pair):
    last = _LAST_PYTHON.get(pair.tensorflow, sys.version_info[:2])
    found = sys.executable if sys.version_info[:2] <= last else shutil.which("python3.12") or shutil.which("python3.11")
    return found or _give_up(f"TensorFlow {pair.tensorflow} needs Python 3.11 or 3.12")


def _run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        _give_up(f"{' '.join(map(str, command))}: {done.stderr.strip().splitlines()[-1:]}")


def _give_up(reason):
    (pytest.fail if os.environ.get("REQUIRE_VERSIONS") == "1" else pytest.skip)(reason)
