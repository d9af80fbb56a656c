"""Older versions of TensorFlow and Keras, each pair in its own environment.

`make test-all` tests the oldest pair, beside the newest on which all tests run; `make test-versions` tests all pairs.
"""

import os
import re
import subprocess
import time

import numpy as np
import pytest
from compare import assert_same_rest, assert_same_weights
from environments import NEWEST, OLDEST, PAIRS, is_here, python_of
from processes import PROGRAM_ENVIRONMENT, PROGRAMS, ROOT, USER_ENVIRONMENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ALL = os.environ.get("VERSIONS") == "all"
TRIED = PAIRS if ALL else [pair for pair in (OLDEST, NEWEST) if not is_here(pair)]


def run(pair, *command, **options):
    """Runs a command with the Python of a pair."""
    options = {"cwd": ROOT, "env": PROGRAM_ENVIRONMENT, "capture_output": True, "text": True, **options}
    return subprocess.run([python_of(pair), *map(str, command)], **options)


@pytest.mark.parametrize("pair", TRIED, ids=str)
def test_the_tests_selected_for_all_versions_pass(pair):
    chosen = ("-m", "versions and not slow", "-q", "-p", "no:cacheprovider", "--tb=short", "tests/callbacks")
    environment = {name: value for name, value in USER_ENVIRONMENT.items() if not name.startswith("PYTEST_")}
    done = run(pair, "-m", "pytest", *chosen, env=environment)
    lines = done.stdout.splitlines()
    print("", f"{pair}: {lines[-1]}", *(line for line in lines if line.startswith("SKIPPED")), sep="\n")
    assert done.returncode == 0, done.stdout[-20000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 80


@pytest.mark.parametrize("pair", TRIED, ids=str)
def test_a_killed_recipe_over_two_devices_ends_with_the_bits_of_the_uninterrupted_one(pair, tmp_path):
    flags = ("-m", "recipes.mnist", "--virtual-devices", 2, "--epochs", 3, "--save-freq", 10, "--workdir")
    name = "checkpoints/model_batch_at_{:05d}.weights.h5".format
    whole = run(pair, *flags, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen([python_of(pair), *map(str, flags), tmp_path / "killed"], cwd=ROOT, env=PROGRAM_ENVIRONMENT)
    while not (tmp_path / "killed" / name(30)).exists():
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / name(66)).exists()
    resumed = run(pair, *flags, tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"^begins +from .*model_batch_at_", resumed.stdout, re.MULTILINE), resumed.stdout
    for check in (assert_same_weights, assert_same_rest):
        check(*(str(tmp_path / each / name(66)) for each in ("whole", "killed")))


@pytest.mark.parametrize("writer, reader", [(OLDEST, NEWEST), (NEWEST, OLDEST)], ids=["older file", "newer file"])
def test_a_file_of_one_version_is_resumed_by_another(writer, reader, tmp_path):
    for what, pair in (("save", writer), ("resume", reader)):
        done = run(pair, PROGRAMS / "other_version.py", what, tmp_path)
        assert done.returncode == 0, done.stderr
    for suffix in (".weights.h5", ".keras"):
        saved, resumed = (np.load(tmp_path / f"{what}{suffix}.npz") for what in ("save", "resume"))
        assert set(saved.files) == set(resumed.files)
        for name in saved.files:
            if "metric" not in name and "_loss_tracker" not in name:
                np.testing.assert_array_equal(resumed[name], saved[name], err_msg=name)
