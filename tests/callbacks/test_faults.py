"""SIGKILL at random instants, many of them inside a write. `make faults` does it a hundred times."""

import os
import random
import subprocess
import sys
import time

import pytest
from compare import assert_same_weights
from faulty_run import BATCHES, TEMPLATE, build
from processes import ROOT, USER_ENVIRONMENT

from callbacks import files, latest_checkpoint

KILLS = int(os.environ.get("FAULTS", 12))
SEED = int(os.environ.get("FAULTS_SEED", 0))


def start(directory, epochs):
    return subprocess.Popen(
        [sys.executable, ROOT / "tests/programs/faulty_run.py", directory, str(epochs)],
        env={**USER_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def visible(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")) if directory.exists() else []


def wait_for(condition, process):
    """Whether the condition came true while the process lived."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0002)
    return True


def kill_at_random(process, directory, choose):
    """Kills the process after some saves: inside a write, or at any instant. Returns how, or None if it ended by itself."""
    saves, newest = choose.randrange(4), max(visible(directory), default="")

    def saved_often_enough():
        return sum(name > newest for name in visible(directory)) >= saves

    inside = choose.random() < 0.7
    moment = (lambda: any(directory.glob(".tmp-*"))) if inside else directory.exists
    if not (wait_for(saved_often_enough, process) and wait_for(moment, process)):
        return None
    time.sleep(choose.random() * (0.02 if inside else 0.2))
    process.kill()
    process.communicate()
    return "inside a write" if any(directory.glob(".tmp-*")) else "between writes"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path):
    epochs, directory, choose = KILLS + 2, tmp_path / "killed", random.Random(SEED)
    whole = start(tmp_path / "whole", epochs)
    assert whole.wait() == 0, whole.communicate()
    model, kills = build(), []
    while len(kills) < KILLS:
        process = start(directory, epochs)
        how = kill_at_random(process, directory, choose)
        if how is None:
            break
        kills.append(how)
        for name in visible(directory):
            files.verify(directory / name)
            model.load_weights(directory / name)
    newest = latest_checkpoint(directory / TEMPLATE)
    process = start(directory, epochs)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.splitlines()[-1] == f"from {newest.batch} to {epochs * BATCHES}"
    last = TEMPLATE.format(batch=epochs * BATCHES)
    assert_same_weights(tmp_path / "whole" / last, directory / last)
    assert visible(directory) == visible(tmp_path / "whole")
    assert not list(directory.glob(".*"))
    assert len(kills) > KILLS * 3 // 4 and "inside a write" in kills
    print(f"{len(kills)} kills, {kills.count('inside a write')} of them inside a write; restarts each from the newest checkpoint")
