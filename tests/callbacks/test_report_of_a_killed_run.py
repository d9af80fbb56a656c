"""The report of a run that is killed five times shows the seconds that the test's own clock has measured, to 1 %."""

import itertools
import json
import subprocess
import sys
import time
from collections import defaultdict

import pytest
from launching import wait_for
from processes import PROGRAM_ENVIRONMENT, PROGRAMS, ROOT

from callbacks.report import Report

pytestmark = pytest.mark.slow
KILLED_AFTER = (90, 150, 230, 290, 370)  # batches
LAST = 440
PAUSE = 2.0  # seconds between two processes
COMMAND = [sys.executable, PROGRAMS / "waiting_run.py"]


def clock_of(directory):
    """Returns the spans that the program has measured: (process id, name, seconds, batch), of each process in its order."""
    text = (directory / "clock").read_text() if (directory / "clock").exists() else ""
    return [(*json.loads(line), None)[:4] for line in text.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of the run; begin and end of each process, by the test's clock."""
    directory, times = tmp_path_factory.mktemp("run"), []
    for i, batch in enumerate((*KILLED_AFTER, None)):
        began = time.time()
        with subprocess.Popen([*COMMAND, directory], cwd=ROOT, env=PROGRAM_ENVIRONMENT, stderr=subprocess.PIPE) as process:
            if batch:
                wait_for(lambda batch=batch: any(each[3] == batch for each in clock_of(directory)[-20:]), f"batch {batch}", 300)
                time.sleep(0.04 * i)  # at various moments of a batch
                process.kill()
            _, errors = process.communicate(timeout=300)
            assert batch or process.returncode == 0, errors
        times.append((began, time.time() if batch else clock_of(directory)[-1][2]))
        if batch:
            time.sleep(PAUSE)
    return directory, times


@pytest.fixture(scope="module")
def told(run):
    return Report(str(run[0] / "record.jsonl"), time.time()).to_json()


def measured_parts(directory, times):
    """Returns the seconds of each part, by the clocks of the program and of the test."""
    parts, trained = defaultdict(float), {}
    names = {"validation": "validation", "save": "blocked_by_saves"}
    parts["queue"] = sum(began - ended for (_, ended), (began, _) in itertools.pairwise(times))
    spans = clock_of(directory)
    lifetimes = dict(zip(dict.fromkeys(each[0] for each in spans), (ended - began for began, ended in times), strict=True))
    for process, lifetime in lifetimes.items():
        of_process = [each for each in spans if each[0] == process]
        data = [seconds for _, name, seconds, _ in of_process if name == "data"]
        batches = [(batch, seconds) for _, name, seconds, batch in of_process if name == "batch"]
        parts["training_lost"] += sum(trained.pop(batch, 0.0) for batch, _ in batches)
        for (batch, seconds), wait in list(zip(batches, data, strict=False))[1:]:  # start-up includes the first batch
            parts["waiting_for_data"] += wait
            trained[batch] = seconds - wait
        others = defaultdict(float)
        for _, name, seconds, _ in of_process:
            if name in names:
                parts[names[name]] += seconds
                others[name] += seconds
        parts["rest"] += lifetime - sum(others.values()) - sum(seconds for _, seconds in batches[1:])
    parts["training_kept"] = sum(trained.values())
    return parts


def test_it_shows_the_lifetime_of_each_process(run, told):
    _, times = run
    allowed = 0.01 * (times[-1][1] - times[0][0])
    assert told["wall_seconds"] == pytest.approx(times[-1][1] - times[0][0], abs=allowed)
    assert sum(told["seconds"].values()) == pytest.approx(told["wall_seconds"], rel=1e-3)
    assert [each["why"] for each in told["attempts"]] == ["killed"] * 5 + ["finished"]
    assert told["attempts"][-1]["last_batch"] == LAST
    for attempt, (began, ended) in zip(told["attempts"], times, strict=True):
        assert sum(attempt["seconds"].values()) - attempt["seconds"]["queue"] == pytest.approx(ended - began, abs=allowed)


def test_each_part_equals_the_clocks_of_the_program_and_the_test(run, told):
    directory, times = run
    measured, seconds = measured_parts(directory, times), told["seconds"]
    print(json.dumps({"wall": times[-1][1] - times[0][0], "measured": measured, "told": seconds}, indent=1))
    allowed = 0.01 * (times[-1][1] - times[0][0])
    rest = seconds["start_up"] + seconds["other_callbacks"] + seconds["outside_training"]
    assert rest == pytest.approx(measured.pop("rest"), abs=allowed)
    assert seconds["slower_beside_writes"] == 0
    for name, value in measured.items():
        assert seconds[name] == pytest.approx(value, abs=allowed), name
    assert measured["training_lost"] > 2 and measured["blocked_by_saves"] > 2  # neither is right just because it is short
