"""Importing a module of callbacks, recipes or launch does not change the process."""

import json
import subprocess
import sys

import pytest
from processes import ROOT, USER_ENVIRONMENT, run_program


@pytest.mark.parametrize("package, first", [("callbacks", ["keras", "h5py"]), ("recipes", ["keras", "h5py"]), ("launch", [])])
def test_an_import_changes_nothing_of_the_process(package, first):
    """TensorFlow and Keras change the process themselves, so they come first."""
    done = run_program("import_all.py", package, *first)
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
