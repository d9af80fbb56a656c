"""A rank reports its progress in training and in validation, without reading from the device."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from processes import ROOT, USER_ENVIRONMENT, Process

from callbacks import counters_of
from launch import world
from recipes.common.arguments import checkpoint_callback, parse, recipe_parser
from recipes.common.distribution import Distribution
from recipes.common.run.progress_bar import ProgressBar
from recipes.common.run.summary import RunSummary


class Listens(keras.callbacks.Callback):
    """Records what the launcher reads after each batch, and how often the counters were read from the device."""

    def __init__(self, channel):
        super().__init__()
        self.heard, self.reads, self._channel, self._last = [], [], channel, None

    def on_train_begin(self, logs=None):
        counters, read = counters_of(self.model), counters_of(self.model)._read_device
        self._count = 0

        def counted_read():
            self._count += 1
            return read()

        counters._read_device = counted_read

    def on_train_batch_end(self, batch, logs=None):
        self._listen("train")

    def on_test_batch_end(self, batch, logs=None):
        self._listen("test")

    def _listen(self, during):
        batch, raw = world.read_progress(self._channel)
        assert raw != self._last, "nothing was reported"
        self._last = raw
        self.heard.append((during, batch))
        self.reads.append(self._count)


@pytest.fixture
def channel(tmp_path, monkeypatch):
    """A file instead of the launcher's shared memory."""
    path = tmp_path / "progress"
    path.touch()
    monkeypatch.setenv(world.PROGRESS, str(path))
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_every_batch_and_validation_batch_is_reported_without_reading_from_the_device(channel):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.zeros((12, 2)), np.zeros((12, 1))
    listens = Listens(channel)
    callbacks = [*Distribution("single", ("/cpu:0",)).callbacks(), listens]
    model.fit(x, y, validation_data=(x[:8], y[:8]), batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
    first, second = ([*(("train", batch) for batch in batches), *[("test", batches[-1])] * 2] for batches in ((1, 2, 3), (4, 5, 6)))
    assert listens.heard == first + second
    assert listens.reads == [0] * 10

    model.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=callbacks)
    assert listens.heard[-1] == ("train", 9)  # counted over all fits of the model


SINGLE = Distribution("single", ("/cpu:0",))


def flags(tmp_path, *more):
    parser = recipe_parser("mnist", "", epochs=2, global_batch_size=4, learning_rate=0.1)
    return parse(parser, ["--workdir", str(tmp_path), "--save-freq", "2", *more])


def train(epochs, *callbacks):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((40, 2)), np.ones((40, 1))
    model.fit(x, y, validation_data=(x, y), batch_size=4, shuffle=False, epochs=epochs, verbose=0, callbacks=list(callbacks))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_and_the_loss_fit_into_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    terminal, checkpoint = Terminal(), checkpoint_callback(flags(tmp_path))
    train(2, checkpoint, ProgressBar(SINGLE, checkpoint, 10, 10.0, terminal))
    shown = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", terminal.getvalue())]
    last = [line for line in shown if line.strip()][-1]
    assert max(len(line) for line in shown) <= 80
    assert last.startswith("\u2501" * 12 + " batch 20 of 20, ") and ", loss 0." in last and ", val_loss 0." in last


def test_train_longer_suggests_more_epochs_than_were_reached(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "1"])
    for epochs, suggested in ((3, 6), (1, 6)):
        args = flags(tmp_path, "--epochs", str(epochs))
        checkpoint = checkpoint_callback(args)
        train(
            epochs,
            checkpoint,
            RunSummary(args, SINGLE, SimpleNamespace(num_batches=10, skipped=None), checkpoint, SimpleNamespace(compiles="")),
        )
        out = capsys.readouterr().out
        assert re.search(r"^train longer .*--epochs (\d+)$", out, re.MULTILINE)[1] == str(suggested), out


@pytest.mark.slow
def test_output_in_a_file_is_dated_lines_and_on_a_terminal_one_bar(tmp_path):
    flags = ["-m", "recipes.mnist", "--model", "mlp", "--epochs", "2", "--log-secs", "0.001", "--save-freq", "10"]
    code, out, _ = Process(*flags[2:], "--workdir", tmp_path / "file").finish()
    lines = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  batch (\d+) of 44, .*", out, re.MULTILINE)
    assert code == 0 and lines[-1] == "44" and len(lines) > 20 and "\x1b" not in out and "\r" not in out

    terminal, inside = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, *flags, "--workdir", str(tmp_path / "terminal")],
        cwd=ROOT, env={**USER_ENVIRONMENT, "TERM": "xterm", "COLUMNS": "160"}, stdout=inside, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(inside)
    shown = b""
    with contextlib.suppress(OSError):  # like at the end of a terminal
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert run.wait() == 0
    last = shown.decode().split("\r")
    assert any(
        "batch 44 of 44" in text and "samples/s" in text and "left" in text and "saved model_batch_at_000" in text for text in last
    )
    assert "Epoch 1/" not in shown.decode() and not re.search(r"\d{4}-\d\d-\d\d \d\d:", shown.decode())
