"""TensorBoard's own readers find one curve per tag over the global batch, whatever interrupts the run."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote

import numpy as np
import pytest
import tensorflow as tf
from curves import curves
from features import PARTIAL_EXECUTIONS
from free_ports import free_ports
from processes import ROOT, USER_ENVIRONMENT, Process, discard_after, run_program
from small import BATCHES, arrays, fit, small_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from callbacks import GlobalStepCheckpoint, GlobalStepTensorBoard, InputError, RunRecord

TRAINED = ("batch_", "epoch_")  # tags whose values a restart must not change


def served_curves(directory, *flags):
    """Returns the curves from a real server."""
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--host", "127.0.0.1", "--port", str(port), *flags],
        env=USER_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        tags = {}
        deadline = time.monotonic() + 180
        while len(tags) < len([path for path in directory.iterdir() if path.is_dir()]):
            assert time.monotonic() < deadline, f"the server shows {list(tags)}"
            try:
                tags = _get(port, "tags")
            except OSError:
                time.sleep(0.1)
        return {
            (run, tag): [(step, value) for _, step, value in _get(port, f"scalars?run={quote(run)}&tag={quote(tag, safe='')}")]
            for run, of_run in tags.items()
            for tag in of_run
        }
    finally:
        server.kill()
        server.wait()


def _get(port, what):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/{what}", timeout=60) as answer:
        return json.load(answer)


def assert_same_curves(found, expected):
    """Checks for the same tags, equal and strictly increasing steps, and equal training values."""
    assert found.keys() == expected.keys()
    for key, points in found.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), key
        assert steps == [step for step, _ in expected[key]], key
        if key[1].startswith(TRAINED):
            np.testing.assert_allclose(
                [value for _, value in points], [value for _, value in expected[key]], rtol=1e-6, err_msg=key
            )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The curves of an uninterrupted recipe: 88 batches in 4 epochs."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    code, _, errors = Process(*FLAGS, "--workdir", directory).finish()
    assert code == 0, errors
    return curves(directory / "tensorboard")


FLAGS = ["--model", "mlp", "--epochs", 4, "--save-freq", 11, "--seed", 5]  # each second checkpoint is at an epoch's last batch


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The directory of the same recipe, killed three times: at the end of an epoch, and twice in the middle of one."""
    directory = tmp_path_factory.mktemp("killed")
    for batch in (22, 33, 55):
        checkpoint = directory / "checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"
        Process(*FLAGS, "--workdir", directory).kill_when(checkpoint.exists)
        discard_after(checkpoint)
    code, _, errors = Process(*FLAGS, "--workdir", directory).finish()
    assert code == 0, errors
    return directory / "tensorboard"


@pytest.mark.slow
def test_three_kills_leave_the_curves_of_the_uninterrupted_run(killed, uninterrupted):
    assert [step for step, _ in uninterrupted["batches", "batch_loss"]] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert [step for step, _ in uninterrupted["train", "epoch_loss"]] == [22, 44, 66, 88]
    assert [step for step, _ in uninterrupted["validation", "epoch_loss"]] == [22, 44, 66, 88]
    found = curves(killed)
    assert_same_curves(found, uninterrupted)
    assert [value for _, value in found["batches", "run/restarts"]][-1] == 3


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--load_fast=true"], ["--load_fast=false"]], ids=["data server", "python"])
def test_a_real_server_shows_the_same_curves(killed, uninterrupted, flags):
    assert_same_curves(served_curves(killed, *flags), uninterrupted)


def steps(directory, run, tag):
    return [step for step, _ in curves(directory)[run, tag]]


@pytest.mark.versions
def test_points_after_the_resumed_checkpoint_are_discarded(tmp_path):
    """Also points of an epoch that ended after the checkpoint, and of one that the next attempt does not reach."""

    def life(epochs):
        model = small_model()
        checkpoint = GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq=BATCHES, resume=True)
        board = GlobalStepTensorBoard(tmp_path / "events", update_freq=4, write_graph=False)
        fit(model, board, checkpoint, epochs=epochs, validation_data=arrays(2))

    life(3)
    for late in ("20", "30"):
        (tmp_path / f"{late}.weights.h5").unlink()
    life(2)
    assert steps(tmp_path / "events", "batches", "batch_loss") == [4, 8, 12, 16, 20]
    assert steps(tmp_path / "events", "train", "epoch_loss") == [10, 20]
    assert steps(tmp_path / "events", "validation", "epoch_loss") == [10, 20]


@pytest.mark.parametrize("board_first", [True, False])
def test_a_point_is_on_the_disk_before_the_checkpoint_of_its_batch(tmp_path, board_first):
    board = GlobalStepTensorBoard(tmp_path / "events", update_freq=5, write_graph=False)
    checkpoint = GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", save_freq=5, background=False)
    seen = []
    write = checkpoint._writer.submit
    checkpoint._writer.submit = lambda *args: (seen.append(steps(tmp_path / "events", "batches", "batch_loss")), write(*args))
    fit(small_model(), *([board, checkpoint] if board_first else [checkpoint, board]))
    assert seen == [[5], [5, 10]]


@pytest.mark.versions
@pytest.mark.parametrize(
    "steps_per_execution", [1, pytest.param(3, marks=PARTIAL_EXECUTIONS), pytest.param(4, marks=PARTIAL_EXECUTIONS)]
)
def test_several_fits_continue_one_axis(tmp_path, steps_per_execution):
    model = small_model(steps_per_execution=steps_per_execution)
    board = GlobalStepTensorBoard(tmp_path, update_freq=5, write_graph=False)
    for _ in range(2):
        fit(model, board)
    fit(model, GlobalStepTensorBoard(tmp_path, update_freq=5, write_graph=False))
    expected = {1: [5, 10, 15, 20, 25, 30], 3: [6, 10, 16, 20, 26, 30], 4: [8, 10, 18, 20, 28, 30]}[steps_per_execution]
    assert steps(tmp_path, "batches", "batch_loss") == expected
    assert steps(tmp_path, "train", "epoch_loss") == [10, 20, 30]


def test_each_tag_has_a_description_in_tensorboard(tmp_path):
    fit(small_model(), GlobalStepTensorBoard(tmp_path, update_freq=5, write_graph=False), validation_data=arrays(2))
    for run in ("batches", "train", "validation"):
        reader = EventAccumulator(str(tmp_path / run)).Reload()
        for tag in reader.Tags()["scalars"]:
            assert reader.SummaryMetadata(tag).summary_description, tag


def test_the_model_and_histograms_of_its_weights_are_in_the_run_of_the_epoch_curves(tmp_path):
    model = small_model()
    board = GlobalStepTensorBoard(tmp_path, histogram_freq=1)
    fit(model, board, epochs=2)
    assert [path.parent.name for path in sorted(tmp_path.rglob("events.out.*"))] == ["batches", "train"]
    reader = EventAccumulator(str(tmp_path / "train"), {"scalars": 0, "tensors": 0}).Reload()
    assert [event.step for event in reader.Scalars("epoch_loss")] == [BATCHES, 2 * BATCHES]
    tags = reader.Tags()["tensors"]
    assert "keras" in tags
    histograms = [tag for tag in tags if tag.endswith("/histogram")]
    assert len(histograms) == len(model.weights)
    assert all([event.step for event in reader.Tensors(tag)] == [BATCHES, 2 * BATCHES] for tag in histograms)


@pytest.mark.parametrize("make", [GlobalStepTensorBoard, RunRecord])
def test_a_directory_in_a_bucket_is_refused_when_the_callback_is_made(make):
    with pytest.raises(InputError, match=r"not a URL\. Received: 'gs://bucket/run'"):
        make("gs://bucket/run")


def test_curves_are_written_where_the_directory_was_when_the_callback_was_made(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    boards = [GlobalStepTensorBoard("here"), GlobalStepTensorBoard("~/events")]
    monkeypatch.chdir("elsewhere")
    for board in boards:
        fit(small_model(), board)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "here", "home"] and not os.listdir()
    assert (tmp_path / "here/batches").is_dir() and (tmp_path / "home/events/batches").is_dir()


def hparams(directory):
    """Returns what TensorBoard's plugin reads: name -> value for each session."""
    found = []
    for path in directory.glob("events.out.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    if content.HasField("session_start_info"):
                        told = content.session_start_info.hparams
                        found.append({name: getattr(each, each.WhichOneof("kind")) for name, each in told.items()})
    return found


def test_hyperparameters_are_those_of_the_newest_resume_in_one_session(tmp_path):
    events = tmp_path / "events"
    with tf.summary.create_file_writer(str(events)).as_default():
        tf.summary.scalar("somebody's own", 1, step=0)
    for epochs, rate in ((1, 0.5), (2, 0.25), (3, 0.125)):
        told = {"learning_rate": rate, "epochs": epochs, "deterministic": True, "strategy": "single"}
        board = GlobalStepTensorBoard(events, write_graph=False, hparams=told)
        fit(small_model(), GlobalStepCheckpoint(tmp_path / "{batch}.weights.h5", resume=True), board, epochs=epochs)
        assert hparams(events) == [told]
        shown = EventMultiplexer().AddRunsFromDirectory(str(events))
        shown.Reload()
        (content,) = shown.PluginRunToTagToContent("hparams")["."].values()
        assert HParamsPluginData.FromString(content).session_start_info.hparams["epochs"].number_value == epochs
        assert shown.PluginRunToTagToContent("scalars")["."] == {"somebody's own": b""}


@pytest.mark.slow
def test_the_hyperparameters_of_a_recipe_distinguish_its_runs(killed):
    (told,) = hparams(killed)
    assert (told["seed"], told["epochs"], told["strategy"], told["world_size"], told["replicas"]) == (5, 4, "single", 1, 1)
    assert told["model"] == "mlp" and told["global_batch_size"] == 64 and told["learning_rate"] == 2e-3
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{12}\+?", told["git_commit"])


@pytest.mark.slow
def test_without_tensorboard_training_continues_after_one_warning(tmp_path):
    run = run_program("without_tensorboard.py", "--model", "mlp", "--epochs", 1, "--workdir", tmp_path)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stderr.splitlines() if "ensor" in line and "pip install" in line]
    assert len(lines) == 1 and "pip install tensorboard" in lines[0], run.stderr
    assert "trained on   22 batches" in run.stdout
    assert re.search(r"^watch +.*pip install tensorboard$", run.stdout, re.MULTILINE) and "--logdir" not in run.stdout
    assert steps(tmp_path / "tensorboard", "batches", "batch_loss") == [10, 20]
