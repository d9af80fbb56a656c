"""Horovod is built from the files in a wheel of this project, without the checkout."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from processes import PROGRAMS, ROOT

from launch.horovod import build


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which a wheel of this project was unpacked."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("a wheel is built with setuptools: make horovod")
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in ("callbacks", "launch", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", wheels, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(installed, tmp_path, **environment):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    shutil.copy(PROGRAMS / "asked_pip.py", tmp_path / "pip" / "__main__.py")
    environment |= {"PYTHONPATH": f"{tmp_path}:{installed}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment |= {"PIP_WAS_ASKED": str(tmp_path / "asked")}
    command = [sys.executable, "-m", "launch.horovod.build"]
    return subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True)


def test_without_a_compiler_it_says_what_is_missing(installed, tmp_path):
    done = run(installed, tmp_path, PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (build.NEEDS_TOOLS, "")
    assert done.stderr.startswith("Horovod is not built: it needs g++, make, patch.") and done.stderr.count("\n") == 1


def test_a_cached_wheel_of_horovod_is_installed_with_the_pinned_requirements(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = build.cache_folder(gpu=False)  # the checkout's: the same patch, TensorFlow and flags name the same folder
    folder.mkdir(parents=True)
    (folder / "horovod.whl").touch()
    done = run(installed, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "asked").read_text().splitlines()
    requirements = installed / "launch" / "horovod" / "requirements.txt"
    assert first.endswith(f"--find-links {folder} --requirement {requirements}") and second.endswith(f"{folder}/horovod.whl")
    assert f"horovod=={build.VERSION} " in requirements.read_text()
