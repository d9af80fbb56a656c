"""Where the time of a run went: the account of a process, the file, and the report."""

import atexit
import itertools
import json
import math
import re
import shlex
import shutil
import sys
import time

import keras
import pytest
from clock import Clock
from processes import ROOT, Process, run_program
from small import BATCHES, Do, fit, small_model

from callbacks import GlobalStepCheckpoint, InputError, Preempted, RunRecord, preemption, start_up
from callbacks.__main__ import main
from callbacks.report import record_file
from callbacks.report.report import PARTS, Report
from callbacks.report.time_account import TimeAccount


def test_an_account_adds_up_to_the_age_of_the_process():
    clock = Clock(1000.0)
    account = TimeAccount(clock, began=990.0, phases={"imports": 7.0, "data": 3.0})
    clock.now += 2
    account.charge("restore")
    clock.now += 1
    account.charge("callbacks")
    account.begin_batch()
    clock.now += 3
    account.note_data()
    clock.now += 1
    account.end_batch(1, beside_write=False)
    clock.now += 6
    account.charge("callbacks", blocked=4.0)
    clock.now += 2
    account.end_batch(1, beside_write=True)
    assert account.seconds == {"imports": 7, "data": 3, "restore": 2, "callbacks": 3, "batches": 6, "blocked": 4}
    assert vars(account.times) == {"batches": [2, 6], "beside": [1, 2], "sampled": [3, 4]}
    assert sum(account.seconds.values()) == clock.now - 990


def test_the_wait_of_the_first_batch_of_an_epoch_is_charged_once():
    clock = Clock(1000.0)
    account = TimeAccount(clock, began=1000.0, phases={})
    for begins_epoch, wait in ((True, 8.0), (False, 1.0)):
        account.begin_batch()
        clock.now += wait
        account.note_data()
        clock.now += 1
        account.end_batch(1, beside_write=False, begins_epoch=begins_epoch)
    assert account.seconds == {"epochs": 8, "batches": 3}
    assert (account.times.batches, account.times.sampled) == ([2, 3], [1, 2])


def test_after_a_kill_at_most_half_a_percent_of_the_time_and_a_minute_is_missing():
    clock = Clock(1000.0)
    account = TimeAccount(clock, began=1000.0, phases={})
    told, batch_seconds = [0.0], 1.0
    while clock.now < 1000 + 86_400:
        clock.now += batch_seconds
        if account.tick_is_due():
            told.append(clock.now - 1000)
    assert all(later - earlier <= min(0.005 * later, 60) + batch_seconds for earlier, later in itertools.pairwise(told))
    assert len(told) < 5000


def line(kind, attempt, time, batch, trained, saved=None, **more):
    """Returns a line of a record with 10 s of start-up; the rest is training."""
    return {
        "kind": kind, "attempt": attempt, "time": time, "batch": batch, "seconds": {"imports": 10.0, "batches": trained},
        "batches": [max(batch - 1, 0), trained], "beside": [0, 0.0], "sampled": [0.0, 0.0], "saved": saved, **more,
    }  # fmt: skip


def begin(attempt, began, batch=0, **more):
    return line("begin", attempt, began + 10, batch, 0.0, began=began, host="elsewhere", pid=1, **more)


def report(path, *lines, now=10_000.0):
    record_file.create(str(path))
    for each in lines:
        record_file.append(str(path), each)
    return Report(str(path), now)


def test_parts_of_killed_attempts_add_up_and_training_that_was_repeated_is_lost(tmp_path):
    found = report(
        tmp_path / "record.jsonl",
        begin("a", 1000.0),
        line("tick", "a", 1050.0, 20, 40.0, [16, "16"]),
        line("tick", "a", 1070.0, 40, 60.0, [32, "32"]),
        begin("b", 1100.0, 32, saved=[32, "32"]),
        line("tick", "b", 1200.0, 100, 90.0, [96, "96"]),
        begin("c", 1230.0, 96, saved=[96, "96"]),
        line("end", "c", 1300.0, 150, 60.0, [150, "150"], why="finished"),
    )
    first, second, third = found.attempts
    assert [each.why for each in found.attempts] == ["killed", "killed", "finished"]
    assert found.wall == 300
    assert sum(found.parts().values()) == pytest.approx(300)
    assert [each.queue for each in found.attempts] == [0, 30, 30]
    assert first.parts()["training_lost"] == pytest.approx(8 / 20 * 20)  # from 32 to 40: of the 20 s between batches 20 and 40
    assert second.parts()["training_lost"] == pytest.approx(90 * 4 / 68)
    assert third.parts()["training_lost"] == 0
    assert found.newest() == {"batch": 150, "path": "150", "exists": False}
    assert found.to_json()["goodput"] == pytest.approx((60 - 8 + 90 * 64 / 68 + 60) / 300)


def test_an_attempt_loses_the_batches_that_a_later_one_repeats(tmp_path):
    found = report(
        tmp_path / "record.jsonl",
        begin("a", 1000.0),
        line("tick", "a", 1050.0, 40, 40.0, [40, "40"]),
        begin("b", 1100.0, 40),
        line("tick", "b", 1150.0, 80, 40.0, [80, "80"]),
        begin("c", 1200.0, 20),  # both newest files were corrupt
    )
    assert [each.parts()["training_lost"] for each in found.attempts] == [pytest.approx(20), pytest.approx(40), 0]


def test_the_last_attempt_has_lost_its_unsaved_batches_unless_it_runs(tmp_path):
    lines = [begin("a", 1000.0), line("tick", "a", 1050.0, 40, 40.0, [30, "30"])]
    found = report(tmp_path / "record.jsonl", *lines, now=1060.0)
    assert (found.attempts[0].why, found.parts()["training_lost"]) == ("running", 0)
    found = Report(found.path, now=1500.0)
    assert (found.attempts[0].why, found.parts()["training_lost"]) == ("killed", pytest.approx(10))


def test_waiting_for_data_and_slower_batches_are_taken_out_of_training(tmp_path):
    told = {"batches": [100, 110.0], "beside": [20, 30.0], "sampled": [1.0, 11.0]}
    parts = report(tmp_path / "record.jsonl", begin("a", 1000.0), line("end", "a", 1120.0, 101, 110.0) | told | {"why": ""}).parts()
    assert parts["waiting_for_data"] == pytest.approx(10)
    assert parts["slower_beside_writes"] == pytest.approx(10)  # 80 took 1 s each, 20 took 1.5 s
    assert parts["training_kept"] == pytest.approx(90)


def test_a_truncated_line_is_skipped_and_the_next_process_begins_a_new_line(tmp_path):
    path = tmp_path / "record.jsonl"
    report(path, begin("a", 1000.0), line("tick", "a", 1050.0, 40, 40.0))
    with open(path, "a") as file:
        file.write('{"kind":"tick","attempt":"a","ti')
    found = report(path, begin("b", 1100.0), line("end", "b", 1200.0, 90, 90.0, why="finished"))
    assert [(each.last["time"], each.why) for each in found.attempts] == [(1050, "killed"), (1200, "finished")]


def test_a_fit_is_recorded_and_shown_and_its_parts_add_up(tmp_path, capsys):
    checkpoint = GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq=4, background=False)
    fit(small_model(), RunRecord(tmp_path), checkpoint, Do(5, lambda: time.sleep(0.2)), epochs=2)
    found = Report(str(tmp_path / "record.jsonl"), time.time())
    (attempt,) = found.attempts
    assert sum(found.parts().values()) == pytest.approx(found.wall, rel=0.01)
    assert attempt.last["batch"] == 2 * BATCHES and attempt.last["saved"][0] == 20
    assert found.parts()["other_callbacks"] > 0.2
    assert main(["report", str(tmp_path)]) == 0
    screen = capsys.readouterr().out
    assert "20.weights.h5, batch 20" in screen and re.search(r"^goodput +\d", screen, re.MULTILINE)
    assert main(["report", "--json", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["seconds"]) == set(PARTS) and sum(told["percent"].values()) == pytest.approx(100, abs=1)


def test_the_report_of_a_run_without_a_record_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: there is no record.jsonl at")


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_batch(tmp_path):
    (tmp_path / "file").write_text("")
    trained = []
    with pytest.raises(InputError, match="Cannot write the record"):
        fit(small_model(), RunRecord(tmp_path / "file" / "run"), Do(1, lambda: trained.append(1)))
    assert not trained


def test_a_record_that_is_deleted_does_not_stop_training(tmp_path):
    start_up.restart()  # a record of an old process has fewer lines
    with pytest.warns(UserWarning, match=r"Cannot write .*record.jsonl any more"):
        fit(small_model(), RunRecord(tmp_path), Do(3, (tmp_path / "record.jsonl").unlink), Do(4, lambda: time.sleep(0.2)))
    assert not (tmp_path / "record.jsonl").exists()


@pytest.fixture
def at_exit(monkeypatch):
    """What the process would do at its exit."""
    acts = []
    monkeypatch.setattr(atexit, "register", acts.append)
    return acts


def test_a_process_whose_run_was_deleted_after_training_exits_in_silence(tmp_path, at_exit, recwarn):
    fit(small_model(), RunRecord(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    recwarn.clear()
    at_exit[-1]()
    assert not recwarn.list and not (tmp_path / "run").exists()


def test_the_record_of_a_process_that_is_stopped_before_its_first_batch_names_no_save(tmp_path, at_exit, monkeypatch):
    monkeypatch.delattr(sys, "last_value", raising=False)  # of an earlier test that has failed
    stops = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: preemption.request_stop(143, "by HUP"))
    with pytest.raises(Preempted):
        fit(small_model(), RunRecord(tmp_path), stops, GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5"))
    at_exit[-1]()
    (attempt,) = Report(str(tmp_path / "record.jsonl"), time.time()).attempts
    assert (attempt.why, attempt.last["saved"]) == ("stopped by HUP, before the first save", None)


def test_a_process_that_cannot_write_the_end_of_its_record_says_so(tmp_path, at_exit):
    fit(small_model(), RunRecord(tmp_path))
    (tmp_path / "record.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"Cannot write .*record.jsonl any more"):
        at_exit[-1]()


def test_the_examples_of_help_work(tmp_path, capsys):
    template = tmp_path / "checkpoints" / "model_batch_at_{batch:05d}.weights.h5"
    fit(small_model(), RunRecord(tmp_path), GlobalStepCheckpoint(template, background=False))
    with pytest.raises(SystemExit) as shown:
        main(["--help"])
    assert shown.value.code == 0
    examples = re.findall(r"^  python -m callbacks (.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    assert {example.split()[0] for example in examples} == {"list", "verify", "report"}
    for example in examples:
        assert main(shlex.split(example.replace("runs/mnist", str(tmp_path)))) == 0, example


def test_the_report_does_not_import_tensorflow():
    run = run_program("report_without_tensorflow.py", ROOT / "callbacks")
    assert run.stdout.split() == ["False", "False"], run.stderr


@pytest.mark.slow
def test_the_report_of_a_recipe_shows_the_phases_of_its_start_up_and_the_training_that_a_kill_has_lost(tmp_path):
    flags = ["--model", "mlp", "--epochs", 30, "--save-freq", 100, "--workdir", tmp_path]
    Process(*flags).kill_when((tmp_path / "checkpoints" / "model_batch_at_00200.weights.h5").exists)
    code, _, errors = Process(*flags).finish()
    assert code == 0, errors
    told = Report(str(tmp_path / "record.jsonl"), time.time()).to_json()
    assert [each["why"] for each in told["attempts"]] == ["killed", "finished"]
    assert sum(told["seconds"].values()) == pytest.approx(told["wall_seconds"], rel=0.01)
    for attempt in told["attempts"]:
        assert attempt["start_up_seconds"].keys() == {"imports", "data", "build", "restore", "trace"}
        assert sum(attempt["start_up_seconds"].values()) == pytest.approx(attempt["seconds"]["start_up"])
    assert told["newest_checkpoint"]["batch"] == 30 * 22 and told["newest_checkpoint"]["exists"]
    assert told["attempts"][1]["seconds"]["training_lost"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": None}, {"attempt": []}, {"time": "now"}, {"time": math.nan}, {"time": 1e300}, {"time": -1e10}, {"seconds": []},
        {"seconds": {"imports": "x"}}, {"batches": [1]}, {"sampled": None}, {"saved": 5}, {"saved": ["x", 1]}, {"began": None},
        {"began": -1e10}, {"host": 5}, {"pid": {}}, {"pid": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_line_with_other_types_is_skipped(tmp_path, change):
    found = report(tmp_path / "record.jsonl", begin("a", 1000.0), begin("b", 1100.0) | change, line("tick", "a", 1050.0, 40, 40.0))
    assert len(found.attempts) == 1
    assert found.to_json()["wall_seconds"] == 50 and found.to_text()


def test_a_record_that_anybody_has_written_does_not_reach_the_terminal_as_it_is(tmp_path, capsys):
    path = tmp_path / "record.jsonl"
    report(path, begin("a", 1000.0), line("end", "a", 1050.0, 40, 40.0, [40, "\x1b[2J\udcff"], why="\x1b]0;title\x07"))
    with open(path, "a") as file:
        file.write("[" * 100_000 + "\n")
    assert main(["report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "title" in out
    assert main(["report", str(tmp_path), "--json"]) == 0
