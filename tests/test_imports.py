"""Importing a module of callbacks, recipes or launch does not change the process."""

import json
import subprocess
import sys

import pytest
from processes import ROOT, USER_ENVIRONMENT

# TensorFlow and Keras change the process themselves, so they come first. Then modules, one by one, with a check after each.
IMPORTS = """
import importlib, json, os, pkgutil, signal, sys
package, *first = sys.argv[1:]
for name in first:
    importlib.import_module(name)

def surroundings():
    handlers = {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()}
    files = {number: os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)}
    wakeup = signal.set_wakeup_fd(-1)
    streams = [id(stream) for stream in (sys.stdin, sys.stdout, sys.stderr, sys.excepthook)]
    return {"handlers": handlers, "files": files, "wakeup": wakeup, "environment": dict(os.environ), "streams": streams}

before, changed, imported = surroundings(), {}, []
def check(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "horovod":
            raise
        return
    imported.append(name)
    after = surroundings()
    different = [part for part in before if after[part] != before[part]]
    if different:
        changed[name] = different
        before.update(after)

check(package)
for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
    check(module.name)
print(json.dumps([imported, changed]))
"""


@pytest.mark.parametrize("package, first", [("callbacks", ["keras", "h5py"]), ("recipes", ["keras", "h5py"]), ("launch", [])])
def test_an_import_changes_nothing_of_the_process(package, first):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, package, *first],
        cwd=ROOT,
        env={**USER_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported, changed = json.loads(done.stdout)
    assert len(imported) > 10
    assert changed == {}


def test_recipes_are_listed_with_one_line_each_without_importing_tensorflow():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "recipes"],
        cwd=ROOT,
        env={**USER_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[2:])
    names = {path.stem for path in (ROOT / "recipes").glob("*.py") if not path.stem.startswith("_")}
    assert listed.keys() == names and listed["mnist"].startswith("Handwritten digits")
    assert "tensorflow" not in done.stderr and "keras" not in done.stderr


@pytest.mark.parametrize("command", ["list", "verify"])
def test_checkpoints_are_listed_without_importing_tensorflow(tmp_path, command):
    data = ROOT / "tests" / "callbacks" / "data" / "format_1"
    for written, code in ((data, 0), (tmp_path, 2), (tmp_path / "none", 2)):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "callbacks", command, str(written)],
            cwd=ROOT,
            env={**USER_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert done.returncode == code, done.stderr
        assert {"callbacks", "h5py"} <= imported and not imported & {"tensorflow", "keras"}
        assert len(said) == (code != 0)
    assert said == [f"error: There is no such directory: {tmp_path / 'none'}"]
