"""The command of a rank: a script, a module or a program, looked up before anything starts."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.errors import LaunchError

CHECKOUT = Path(__file__).parents[2]


def resolve(target: str, arguments: Sequence[str], *, module: bool, no_python: bool) -> list[str]:
    """Returns the command of a rank. Its first word is an absolute path.

    Args:
        target: a script; a module if `module` is set; a program if `no_python` is set.
        arguments: the arguments of the target.

    Raises:
        LaunchError: if the target does not exist.
    """
    if module and no_python:
        raise LaunchError("-m runs a module with Python; --no-python runs a program without Python. Use one of them.")
    if no_python:
        program = shutil.which(target)
        if program is None:
            raise LaunchError(f"--no-python needs an executable file. Received: {target}")
        return [program, *arguments]
    python = [sys.executable, "-u"]  # unbuffered, so that the log contains everything that a rank printed before it died
    if module:
        _check_module(target)
        return [*python, "-m", target, *arguments]
    return [*python, _script(target), *arguments]


def _script(path):
    found = path if os.path.exists(path) or os.path.isabs(path) else str(CHECKOUT / path)
    if os.path.isdir(found) and not os.path.exists(os.path.join(found, "__main__.py")):
        raise LaunchError(f"A script must be a file. Received the folder {path}")
    if not os.path.exists(found):
        raise LaunchError(f"There is no script {path} in {os.getcwd()}.")
    return found


def _check_module(name):
    """Looks up a module like the import system, but does not import its parents, which may import TensorFlow."""
    path, spec = None, None
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        spec = _find(part, path)
        if spec is None:
            raise LaunchError(f"There is no module {part}. Received: -m {name}")
        path = spec.submodule_search_locations
    if path is not None and _find(f"{name}.__main__", path) is None:
        raise LaunchError(f"-m needs a module, or a package with a __main__ module. Received the package {name}")


def _find(name, path):
    if not all(part.isidentifier() for part in name.split(".")) or (path is None and "." in name):
        return None
    return next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)), None)
