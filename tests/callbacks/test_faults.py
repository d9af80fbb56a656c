"""Trainings that are ended repeatedly, with faults that a seed selects. `make faults` does so a hundred times."""

import re

import pytest
from processes import run_program


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_repeatedly_ended_in_any_way_loses_nothing():
    done = run_program("soak.py", "--rounds", 8, "--seed", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = int(re.match(r"seed 0: (\d+) rounds", done.stdout.splitlines()[-1])[1])
    assert rounds >= 4, done.stdout  # a round after the end of a training, on a fast or slow machine, does not count
