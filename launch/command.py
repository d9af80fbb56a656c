"""What each rank executes: a script, a module or a program, looked up before anything starts."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.errors import LaunchError

CHECKOUT = Path(__file__).parent.parent


def resolve(target: str, arguments: Sequence[str], *, module: bool, no_python: bool) -> list[str]:
    """The command of a rank, the first word an absolute path.

    Args:
        target: a script, or with `module` a module, or with `no_python` a program.
        arguments: what follows it.

    Raises:
        LaunchError: if there is no such thing.
    """
    if module and no_python:
        raise LaunchError("-m runs a module with Python, --no-python runs without it. Use one of them.")
    if no_python:
        program = shutil.which(target)
        if program is None:
            raise LaunchError(f"--no-python runs a program, a file that may be executed. Received: {target}")
        return [program, *arguments]
    python = [sys.executable, "-u"]  # unbuffered: what a rank printed before it died is in its log
    if module:
        _check_module(target)
        return [*python, "-m", target, *arguments]
    return [*python, _script(target), *arguments]


def _script(path):
    found = path if os.path.exists(path) or os.path.isabs(path) else str(CHECKOUT / path)
    if os.path.isdir(found) and not os.path.exists(os.path.join(found, "__main__.py")):
        raise LaunchError(f"A script is a file. Received the folder {path}")
    if not os.path.exists(found):
        raise LaunchError(f"There is no script {path} here, in {os.getcwd()}.")
    return found


def _check_module(name):
    """Looks for a module as the import system does, without importing its parents: they may bring in TensorFlow."""
    path, spec = None, None
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        spec = _find(part, path)
        if spec is None:
            raise LaunchError(f"There is no module {part}. Received: -m {name}")
        path = spec.submodule_search_locations
    if path is not None and _find(f"{name}.__main__", path) is None:
        raise LaunchError(f"-m takes a module, or a package with a __main__. Received the package {name}")


def _find(name, path):
    if not all(part.isidentifier() for part in name.split(".")) or (path is None and "." in name):
        return None
    return next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)), None)
