"""Power cuts at any moment: replays the changes of a real run to its directories, with every state that POSIX allows after a cut.

`recorded_disk.py` describes what may be lost. `test_power_cuts.py` cuts the power of real file systems.
"""

import contextlib
import dataclasses
import itertools
import os
import random
import re
import shutil
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_weights
from processes import PROGRAM_ENVIRONMENT, PROGRAMS, run_program
from recorded_disk import NotFollowed, Recording, power_cuts, record
from recorded_run import BATCHES, EPOCHS, KEPT, TEMPLATES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.curves import event_files
from callbacks.curves.event_files import EventFile
from callbacks.disk.lock import Lock
from callbacks.resuming.restoring import read_verified
from recipes.common.data.tfrecord_index import read_or_make_index

RUN = "new/run"
LENGTHS = [[3, 0, 70], [1, 2]]  # of the records of two TFRecord files


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A directory after a run, and the recording of the run."""
    if not shutil.which("strace") and not os.environ.get("CI"):
        pytest.skip("there is no strace")
    for _ in range(2):  # one recording in fifteen differed from its files before descriptors were followed by their paths
        with contextlib.suppress(NotFollowed):
            return make_and_record(tmp_path_factory.mktemp("recorded") / "disk")
    return make_and_record(tmp_path_factory.mktemp("recorded") / "disk")


def make_and_record(directory):
    (directory / "data").mkdir(parents=True)
    for i, lengths in enumerate(LENGTHS):
        with tf.io.TFRecordWriter(str(directory / f"data/train-{i:05d}-of-{len(LENGTHS):05d}")) as writer:
            for length in lengths:
                writer.write(bytes(length))
    return directory, record(directory, [sys.executable, PROGRAMS / "recorded_run.py", directory], env=PROGRAM_ENVIRONMENT)


def is_of_checkpoints(path):
    return path.startswith(RUN) and not path.startswith(f"{RUN}/events")


def is_of_events(path):
    return path.startswith(f"{RUN}/events")


def is_of_index(path):
    return path.startswith("data/")


def put(directory, tree):
    """Creates the files of a tree."""
    for path, content in tree.items():
        if content is None:
            (directory / path).mkdir(parents=True, exist_ok=True)
        else:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)


def distinct(recording, belongs):
    """Returns the distinct states that power cuts leave in a part of the directory."""
    seen = {}
    for _, tree in power_cuts(recording.part(belongs)):
        found = {path: content for path, content in tree.items() if belongs(path)}
        seen[frozenset(found.items())] = found
    return list(seen.values())


class Checkpoints:
    """Checks the checkpoints that a power cut leaves; reads each distinct file once."""

    def __init__(self, recording: Recording, directory):
        self._directory, self._batches = directory, {}
        self._saved = [
            (moment, int(found[1]), found[2])
            for moment, line in recording.printed
            if (found := re.match(rf"Batch (\d+): saved .*/{RUN}/(\S+) ", line))
        ]
        assert len(self._saved) == len(TEMPLATES) * EPOCHS * BATCHES // 2

    def check(self, moment, tree):
        """Checks that every visible file is intact, and that the newest checkpoints that were reported as saved exist."""
        visible = {path for path, content in tree.items() if content is not None and not os.path.basename(path).startswith(".")}
        for path in visible:
            assert self._batch(path, tree[path]) is not None, f"{path} is visible and corrupt"
        for suffix in (".weights.h5", ".keras"):
            saved = [name for when, _, name in self._saved if when <= moment and name.endswith(suffix)]
            lost = {f"{RUN}/{name}" for name in saved[-KEPT:]} - visible
            assert not lost, f"{lost} were saved and are gone, {visible} are there"

    def _batch(self, path, content):
        key = (os.path.basename(path), content)
        if key not in self._batches:
            file = self._directory / key[0]
            file.write_bytes(content)
            try:
                self._batches[key] = read_verified(str(file)).batch
            except Exception:
                self._batches[key] = None
        return self._batches[key]


def check_checkpoints(recording, directory):
    part, checkpoints, count = recording.part(is_of_checkpoints), Checkpoints(recording, directory), 0
    for moment, tree in power_cuts(part):
        checkpoints.check(moment, {path: content for path, content in tree.items() if is_of_checkpoints(path)})
        count += 1
    return count


@pytest.mark.slow
def test_after_a_power_cut_every_visible_checkpoint_is_intact_and_the_newest_saved_ones_exist(recorded, tmp_path):
    """So an old checkpoint is deleted only when the newer one is durable, and new parent directories survive the cut too."""
    count = check_checkpoints(recorded[1], tmp_path)
    assert count > 5000
    print(f"{count} states")


@pytest.mark.parametrize(
    "forgotten",
    [
        lambda path: ".tmp-" in path,
        lambda path: path == RUN,
        lambda path: path == f"{RUN}/e1",
        lambda path: path == "",
        lambda path: path == "new",
    ],
    ids=["of the file", "of its name", "of a name in a directory that the template makes", "of a parent", "of the directory"],
)
def test_the_replay_detects_a_missing_flush(recorded, tmp_path, forgotten):
    _, recording = recorded
    of = {number for number, path in recording.paths.items() if forgotten(path)}
    changes = [
        dataclasses.replace(change, durable_from=float("inf")) if change.of in of and change.durable_from else change
        for change in recording.changes
    ]
    with pytest.raises(AssertionError, match=r"is visible and corrupt|were saved and are gone"):
        check_checkpoints(dataclasses.replace(recording, changes=changes), tmp_path)


def directories_of(left, tmp_path):
    """Yields a number and a directory for each state that a cut may leave of one directory."""
    for i, tree in enumerate(left):
        directory = tmp_path / str(i)
        put(directory, {os.path.basename(path): content for path, content in tree.items()} | {"": None})
        yield i, directory


def test_after_a_power_cut_the_next_run_takes_the_lock(recorded, tmp_path):
    left = distinct(recorded[1], lambda path: path.startswith(f"{RUN}/.lock-"))
    assert len(left) > 10
    for _, directory in directories_of(left, tmp_path):
        for template in TEMPLATES:
            lock = Lock(f"{RUN}/{template}", str(directory))
            lock.acquire()
            lock.check()
            lock.release()
        assert list(directory.iterdir()) == []


def test_after_a_power_cut_the_next_run_continues_the_curves(recorded, tmp_path):
    left = distinct(recorded[1], lambda path: path.startswith(f"{RUN}/events/batches/"))
    assert len(left) > 100
    for i, directory in directories_of(left, tmp_path):
        assert len(event_files.attempts(str(directory))) <= 1
        assert event_files.steps(str(directory)) <= set(range(1, EPOCHS * BATCHES + 1))
        if i % 20 == 0:
            file = EventFile(str(directory), str)
            file.begin(5, time.time())
            file.scalars(5, time.time(), {"loss": 0.5})
            reader = EventAccumulator(str(directory), {"scalars": 0}).Reload()
            points = reader.Scalars("loss")
            assert (points[-1].step, points[-1].value) == (5, 0.5)
            assert [point.step for point in points[:-1]] == sorted({1, 2, 3, 4} & {point.step for point in points})


@pytest.mark.slow
def test_after_a_power_cut_the_next_run_finds_the_records(recorded, tmp_path):
    directory, recording = recorded
    left = distinct(recording, is_of_index)
    assert len(left) > 10
    for i, tree in enumerate(left):
        shutil.copytree(directory / "data", tmp_path / str(i), ignore=shutil.ignore_patterns(".*"))
        put(tmp_path / str(i), {os.path.basename(path): content for path, content in tree.items()})
        _, _, counts, lengths = read_or_make_index(str(tmp_path / str(i)), "train")
        np.testing.assert_array_equal(counts, [len(each) for each in LENGTHS])
        np.testing.assert_array_equal(lengths, list(itertools.chain(*LENGTHS)))


@pytest.mark.slow
def test_the_run_after_a_power_cut_ends_with_the_same_bits_and_leaves_nothing_else(recorded, tmp_path):
    """Checks random states of the checkpoints, the curves and the index."""
    directory, recording = recorded
    choose = random.Random(0)
    parts = [distinct(recording, belongs) for belongs in (is_of_checkpoints, is_of_events, is_of_index)]
    cuts = [tmp_path / str(i) for i in range(6)]
    for i, cut in enumerate(cuts):
        shutil.copytree(directory / "data", cut / "data", ignore=shutil.ignore_patterns(".*"))
        for part in parts:
            begin, end = (len(part) * place // len(cuts) for place in (i, i + 1))  # early cuts and late ones
            put(cut, part[choose.randrange(begin, end)])
    done = run_program("recorded_run.py", *cuts)
    assert done.returncode == 0, done.stderr
    last = TEMPLATES[0].format(batch=EPOCHS * BATCHES)
    for cut in cuts:
        assert_same_weights(directory / RUN / last, cut / RUN / last)
        assert not [path for path in (cut / RUN).rglob(".*")]
    assert len({line for line in done.stdout.splitlines() if line.startswith("from ")}) > 2, done.stdout
