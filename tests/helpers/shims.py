"""Compiles C files of `tests/programs` that replace functions of the C library (LD_PRELOAD)."""

import shutil
import subprocess
from pathlib import Path

from processes import PROGRAMS


def compiler():
    """Returns the C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc")


def compile_shim(name: str, directory: Path) -> Path:
    """Compiles a C file once for each directory. Returns the library to preload."""
    library = directory / f"{name}.so"
    if not library.exists():
        source = PROGRAMS / f"{name}.c"
        subprocess.run([compiler(), "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
