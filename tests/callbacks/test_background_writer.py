"""Training continues while a checkpoint is written, the file contains the instant of the save, and no failure is lost."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from compare import assert_same_weights
from processes import PROGRAM_ENVIRONMENT, PROGRAMS, run_program
from small import BATCH, Do, arrays, fail, fit, names, small_model, with_built_optimizer

import callbacks.saving.checkpoint_maker
from callbacks import CheckpointWriteError, GlobalStepCheckpoint, latest_checkpoint
from callbacks.counting.save_costs import save_costs_of
from callbacks.disk import files
from callbacks.disk.lock import pid_space
from callbacks.state import state


@pytest.fixture
def gate(monkeypatch):
    """Blocks every write until `open` is set; then the real write runs."""

    class Gate:
        open, entered = threading.Event(), threading.Event()

    real = state.write

    def write(snapshot, output):
        Gate.entered.set()
        assert Gate.open.wait(300)
        real(snapshot, output)

    monkeypatch.setattr(callbacks.saving.checkpoint_maker.state, "write", write)
    yield Gate
    Gate.open.set()


def embedding_model(spe):
    layers = keras.layers
    tokens = keras.Input((5,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(50, 8)(tokens))
    model = keras.Model(tokens, layers.Dense(1)(layers.Dropout(0.2)(layers.BatchNormalization()(x))))
    model.compile(keras.optimizers.Adam(0.05), "mse", steps_per_execution=spe, jit_compile=False)
    return with_built_optimizer(model)


@pytest.mark.slow
@pytest.mark.parametrize("suffix, replicas, spe", [(".weights.h5", 2, 4), (".keras", 1, 1)])
def test_a_file_written_in_the_background_equals_one_written_at_once(tmp_path, strategy, gate, suffix, replicas, spe):
    """The write begins after eight more batches have changed every variable."""
    random = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices((random.integers(0, 50, (64, 5)), random.normal(size=(64, 1)))).batch(4)
    written = {}
    for background in (True, False):
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        with strategy(replicas).scope():
            model = embedding_model(spe)
        directory = tmp_path / str(background)
        checkpoint = GlobalStepCheckpoint(str(directory / ("b{batch}" + suffix)), save_freq=8, background=background)
        if not background:
            gate.open.set()
        # the save of batch 16 makes room first: so the gate opens just before it
        model.fit(data, verbose=0, callbacks=[Do(16 // spe, gate.open.set), checkpoint])
        written[background] = directory / ("b8" + suffix)
        gate.open.clear()
        gate.open.set()
    if suffix == ".weights.h5":
        assert_same_weights(written[True], written[False])
    one, other = (latest_checkpoint(path) for path in written.values())
    assert (one.batch, one.metrics) == (8, other.metrics)
    restored = []
    for path in written.values():
        keras.backend.clear_session(free_memory=False)
        with strategy(replicas).scope():
            model = embedding_model(spe)
        state.restore(model, str(path))
        restored.append([v.numpy() for v in (*model.variables, *model.optimizer.variables)])
    for a, b in zip(*restored, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_under_xla_counts_are_right_and_a_file_written_in_the_background_equals_one_written_at_once(tmp_path):
    """Runs in its own process, because Keras does not use XLA under op determinism. On GPUs, Keras uses XLA by default."""
    done = run_program("saves_under_xla.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "20 80\n20 80\n"
    for batch in (3, 6, 9, 12, 15, 18, 20):
        assert_same_weights(*(tmp_path / which / f"b{batch}.weights.h5" for which in ("True", "False")))


def test_training_continues_during_a_save(tmp_path, gate):
    reached = []

    def look():
        reached.append(gate.entered.wait(300) and not gate.open.is_set() and names(tmp_path) == [])
        gate.open.set()

    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=2), Do(3, look))
    assert reached == [True]


def test_a_save_that_is_due_during_another_save_waits_and_a_warning_gives_the_rate(tmp_path, gate):
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=2)

    def open_when_the_next_save_waits():
        gate.entered.wait(300)
        while checkpoint._writer._in_flight is not None:
            time.sleep(0.01)
        time.sleep(0.2)  # long enough for a warning
        gate.open.set()

    threading.Thread(target=open_when_the_next_save_waits).start()
    with pytest.warns(UserWarning, match=r"The save of batch 4 waited .* s for .*b2\.weights\.h5 .* MB/s"):
        fit(small_model(), checkpoint)
    assert names(tmp_path) == [f"b{batch}.weights.h5" for batch in (10, 2, 4, 6, 8)]


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_error_stops_training_at_the_next_batch_and_names_file_and_cause(tmp_path, monkeypatch, background):
    real = os.fsync

    def fails(descriptor):
        if "b4" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    model = small_model()
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=2, background=background)
    wait = Do(5, lambda: checkpoint._writer._in_flight and checkpoint._writer._in_flight.exception(300))
    with pytest.raises(CheckpointWriteError, match=r"b4\.weights\.h5: Input/output error.*before it are intact"):
        fit(model, wait, checkpoint)
    assert int(model.optimizer.iterations.numpy()) <= 5
    assert not save_costs_of(model).is_writing
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock")] == ["b2.weights.h5"]
    files.verify(tmp_path / "b2.weights.h5")


def test_fit_raises_an_error_of_the_last_save(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks.saving.checkpoint_maker.state, "write", full)
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq="epoch"))
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_save_is_completed_after_an_exception_in_training(tmp_path):
    """Runs in its own process, which ends right after the exception."""
    runs = {}
    for error in ("ValueError", "KeyboardInterrupt"):
        directory = tmp_path / error
        command = [sys.executable, PROGRAMS / "ends_in_a_save.py", error, directory / "b{batch}.weights.h5"]
        runs[error] = directory, subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=PROGRAM_ENVIRONMENT)
    for error, (directory, process) in runs.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode and error in errors
        assert sorted(path.name for path in directory.iterdir()) == ["b4.weights.h5"], errors  # no lock, no temporary
        files.verify(directory / "b4.weights.h5")


def test_a_fit_after_a_failed_one_waits_for_its_save(tmp_path, monkeypatch):
    template = str(tmp_path / "b{batch}.weights.h5")
    begun, may_end, write = threading.Event(), threading.Event(), state.write

    def held(snapshot, output):
        write(snapshot, output)
        begun.set()
        assert may_end.wait(300)

    def fail():
        assert begun.wait(300)
        raise InterruptedError

    monkeypatch.setattr(callbacks.saving.checkpoint_maker.state, "write", held)
    with pytest.raises(InterruptedError):
        fit(small_model(), GlobalStepCheckpoint(template, save_freq=4), Do(5, fail))
    threading.Timer(0.5, may_end.set).start()
    fit(small_model(), GlobalStepCheckpoint(template, save_freq="epoch"))
    assert names(tmp_path) == ["b10.weights.h5", "b4.weights.h5"]


def fail_with_a_pending_save(template):
    """Fails a `fit` whose first save, of batch 4, begins when the returned event is set."""
    checkpoint, may_begin = GlobalStepCheckpoint(template, save_freq=4), threading.Event()

    with pytest.raises(InterruptedError):
        fit(small_model(), Do(3, lambda: checkpoint._writer.prepare(may_begin.wait)), checkpoint, Do(5, fail))
    return may_begin


@pytest.mark.parametrize(
    "place", ["b{batch}.weights.h5", "b4.weights.h5", ".", "link", "link/b4.weights.h5", "link/b{batch}.weights.h5"]
)
def test_a_search_after_a_failed_fit_finds_its_pending_save(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    os.symlink(".", "link")
    threading.Timer(0.5, fail_with_a_pending_save("b{batch}.weights.h5").set).start()
    assert latest_checkpoint(place).batch == 4


def test_a_forked_process_does_not_wait_for_a_save_of_its_parent(tmp_path):
    may_begin = fail_with_a_pending_save(str(tmp_path / "b{batch}.weights.h5"))
    if not (child := os.fork()):
        signal.alarm(60)
        os._exit(latest_checkpoint(tmp_path) is not None)
    assert os.waitpid(child, 0)[1] == 0
    may_begin.set()
    assert latest_checkpoint(tmp_path).batch == 4


def test_the_thread_of_a_failed_fit_ends_with_its_save(tmp_path):
    before = threading.enumerate()
    fail_with_a_pending_save(str(tmp_path / "b{batch}.weights.h5")).set()
    (writer,) = (each for each in threading.enumerate() if each.name.startswith("checkpoint-writer") and each not in before)
    assert latest_checkpoint(tmp_path).batch == 4
    deadline = time.monotonic() + 300  # the next check of the lock's thread
    while writer.is_alive():
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.01)


def test_a_fit_after_a_failed_one_resumes_from_its_pending_save(tmp_path):
    template = str(tmp_path / "b{batch}.weights.h5")
    threading.Timer(0.5, fail_with_a_pending_save(template).set).start()
    resumed = GlobalStepCheckpoint(template, save_freq=4, resume=True)
    fit(small_model(), resumed)
    assert resumed.resumed_from.batch == 4


def test_a_last_save_is_made_unless_that_state_was_just_saved(tmp_path):
    saves = []
    real = state.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            callbacks.saving.checkpoint_maker.state, "write", lambda *args: (saves.append(args[0].counts.batch), real(*args))
        )
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "a{batch}.weights.h5"), save_freq=5))
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=4))
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "c{batch}.weights.h5"), save_freq="epoch"))
    assert saves == [5, 10, 4, 8, 10, 10]


def test_no_batch_between_saves_reads_the_device(tmp_path, monkeypatch):
    """A read waits for running batches, so reads are allowed only at saves and at the boundaries of an epoch."""
    model = small_model()
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5"), save_freq=500)
    reads, in_batch = [], []
    handle = tf.raw_ops.ReadVariableOp

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            in_batch.append(batch)

    counters = callbacks.counters_of(model)
    read_device = counters._read_device
    monkeypatch.setattr(counters, "_read_device", lambda: (reads.append(len(in_batch)), read_device())[1])
    monkeypatch.setattr(tf.raw_ops, "ReadVariableOp", lambda **given: (reads.append(len(in_batch)), handle(**given))[1])
    to_numpy = type(tf.constant(0)).numpy
    monkeypatch.setattr(type(tf.constant(0)), "numpy", lambda self: (reads.append(len(in_batch)), to_numpy(self))[1])
    calls = []
    end = checkpoint.on_train_batch_end

    def watched(batch, logs=None):
        before = len(reads)
        end(batch, logs)
        calls.append(len(reads) - before)

    monkeypatch.setattr(checkpoint, "on_train_batch_end", watched)
    model.fit(*arrays(100), batch_size=BATCH, verbose=0, epochs=6, callbacks=[Watch(), checkpoint])
    assert len(calls) == 600
    assert [i + 1 for i, count in enumerate(calls) if count] == [500]


def test_temporary_files_are_deleted_if_their_process_is_dead_and_kept_if_it_is_alive(tmp_path):
    here, target = pid_space(), "b7.weights.h5"
    dead = subprocess.Popen(["true"])
    dead.wait()
    living = subprocess.Popen(["sleep", "60"])
    recycled = f".tmp-{os.getpid()}@{here}@{target}"  # in a container, every attempt has the same pid
    left = {
        f".tmp-{dead.pid}@{here}@{target}": False,
        recycled: False,
        f".tmp-{10**20}@{here}@{target}": False,  # no process has such a pid
        f".tmp-{living.pid}@{here}@{target}": True,
        f".tmp-1@elsewhere@{target}": True,
        f".tmp-{dead.pid}@{os.uname().nodename}-1@{target}": True,  # in another container of the same host name
        f".tmp-{dead.pid}@{here}@other.weights.h5": True,  # of another template
        ".tmp-notes": True,
    }
    for name in left:
        (tmp_path / name).write_text("")
    silent = tmp_path / ".tmp-2@elsewhere@b8.weights.h5"
    silent.write_text("")
    os.utime(silent, (0, 0))
    try:
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5")))
        assert {name for name in left if (tmp_path / name).exists()} == {name for name, stays in left.items() if stays}
        assert not silent.exists()
    finally:
        living.kill()


def test_our_part_of_a_file_is_plain_data(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "b{batch}.weights.h5")))
    with h5py.File(tmp_path / "b10.weights.h5") as file:
        header = json.loads(file["global_step/header"][()].tobytes())
    assert header["format"] == state.FORMAT
    assert header["counts"]["batch"] == 10
