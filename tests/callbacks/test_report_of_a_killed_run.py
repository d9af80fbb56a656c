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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.report.report import Report

pytestmark = pytest.mark.slow
KILLED_AFTER = (45, 75, 115, 145, 185)  # batches
LAST = 220
PAUSE = 2.0  # seconds between two processes
COMMAND = [sys.executable, PROGRAMS / "waiting_run.py"]


def clock_of(directory):
    """Returns the spans that the program has measured: (process id, name, seconds, batch), of each process in its order."""
    text = (directory / "clock").read_text() if (directory / "clock").exists() else ""
    return [(*json.loads(line), None)[:4] for line in text.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of the run; begin and end of each process. One that is killed ends with the last line of its record (mtime)."""
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
        times.append((began, (directory / "record.jsonl").stat().st_mtime if batch else clock_of(directory)[-1][2]))
        if batch:
            time.sleep(PAUSE)
    return directory, times


@pytest.fixture(scope="module")
def told(run):
    return Report(str(run[0] / "record.jsonl"), time.time()).to_json()


def measured_parts(directory, times):
    """Returns the seconds of each part, by the clocks of the program and of the test."""
    parts = defaultdict(float, queue=sum(began - ended for (_, ended), (began, _) in itertools.pairwise(times)))
    trained = {}  # batch -> seconds without the wait for data, in the last process that has trained on it
    spans = clock_of(directory)
    for process, (began, ended) in zip(dict.fromkeys(each[0] for each in spans), times, strict=True):
        of_process = defaultdict(list)
        for _, name, seconds, _ in (each for each in spans if each[0] == process):
            of_process[name].append(seconds)
        batches = [batch for each, name, _, batch in spans if (each, name) == (process, "batch")]
        parts["training_lost"] += sum(trained.pop(batch, 0.0) for batch in batches)
        waits = of_process["data"][1 : len(batches)]  # start-up includes the first batch, and the last one may be incomplete
        trained |= {batch: of_process["batch"][i] - of_process["data"][i] for i, batch in enumerate(batches) if i}
        found = {
            "start_up": of_process["started"][0] - began - of_process["epoch"][0],
            "waiting_for_data": sum(waits) + sum(of_process["epoch"]),
            "blocked_by_saves": sum(of_process["save"]),
            "validation": sum(of_process["validation"]),
            "outside_training": sum(ended - trained for trained in of_process["trained"]),
        }
        in_batches = sum(of_process["batch"][1:]) - sum(waits)
        found["other_callbacks"] = ended - began - in_batches - sum(found.values())
        for name, seconds in found.items():
            parts[name] += seconds
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
    assert seconds["slower_beside_writes"] == 0
    for name, value in measured.items():
        assert seconds[name] == pytest.approx(value, abs=allowed), name
    assert measured["training_lost"] > 2 and measured["blocked_by_saves"] > 2  # neither is right just because it is short


def test_goodput_in_the_curves_is_that_of_the_report(run, told):
    directory, times = run
    *_, point = EventAccumulator(str(directory / "events" / "batches")).Reload().Scalars("run/goodput")
    assert point.step == LAST
    in_report = told["seconds"]["training_kept"] / (point.wall_time - times[0][0])  # nothing is trained on after the point
    assert point.value == pytest.approx(in_report, abs=0.01)
