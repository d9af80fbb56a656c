"""Trains on a disk with repeated power cuts: the file system is shut down, unmounted and mounted.

unshare --mount python tests/programs/cut_run.py IMAGE DIRECTORY CUTS SEED

IMAGE contains a file system, which is mounted at DIRECTORY. Each attempt of the training resumes from the state after the previous
cut, and is cut at a random moment, most often during a save. The last attempt is not cut. Prints the results as JSON.
"""

import contextlib
import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections import Counter

import keras
import numpy as np
import tensorflow as tf
from small import with_built_optimizer

from callbacks import CheckpointWriteError, GlobalStepCheckpoint
from callbacks.disk import files
from callbacks.resuming.restoring import read_verified

SHUT_DOWN = 0x8004587D  # FS_IOC_SHUTDOWN of ext4 and xfs
FLUSH_JOURNAL, FLUSH_NOTHING = 1, 2
EPOCHS, BATCHES, BATCH, KEPT = 16, 10, 4, 3
TEMPLATE = "run/checkpoints/b{batch:05d}.weights.h5"


class Cut(keras.callbacks.Callback):
    """Shuts the file system down, some saves after training begins: at a place of a save, or at any moment."""

    PLACES = ("written", "flushed", "committed", "any")

    def __init__(self, directory, choose):
        super().__init__()
        self._directory, self._after, self.place = directory, choose.randrange(1, 8), choose.choice(self.PLACES)
        self._pause, self._how = choose.random() * 0.02, choose.choice((FLUSH_JOURNAL, FLUSH_NOTHING))
        self._seen = self._late = 0  # saves, and batches since the cut is due
        self.is_made = threading.Event()

    def note_save(self):
        """Counts the saves of this attempt."""
        self._seen += 1
        if self._seen == self._after and self.place == "any":
            threading.Timer(self._pause, self.strike, ["any"]).start()

    def on_train_batch_end(self, batch, logs=None):
        if self._seen >= self._after:  # otherwise training might end before the cut
            self._late += 1
            self.is_made.wait(0.005 if self._late < 10 else None)

    def strike(self, place):
        """Makes the cut if it is due at this point."""
        if place == self.place and self._seen >= self._after and not self.is_made.is_set():
            descriptor = os.open(self._directory, os.O_RDONLY)
            self.is_made.set()
            fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", self._how))
            os.close(descriptor)


def mount(image, directory):
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)


def unmount(directory):
    """Waits until this process has no open file there."""
    for _ in range(200):
        if subprocess.run(["umount", directory], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    subprocess.run(["umount", directory], check=True)


def train(directory, *callbacks):
    """Resumes, and trains until the disk is gone. Returns whether training reached its end."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(BATCHES * BATCH, size)).astype("float32") for size in (6, 1))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(160), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with_built_optimizer(model)
    checkpoint = GlobalStepCheckpoint(f"{directory}/{TEMPLATE}", save_freq=1, keep_last=KEPT, resume=True)
    try:
        model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[checkpoint, *callbacks])
    except CheckpointWriteError:
        return False
    finally:
        with contextlib.suppress(CheckpointWriteError):
            checkpoint._writer.finish()
    return True


def main(image, directory, cuts, seed):
    tf.config.experimental.enable_op_determinism()
    choose, places = random.Random(seed), Counter[str]()
    committed: list[str] = []
    commit = files.commit

    def cut_commit(path, trailer, write, check):
        def write_and_strike(output):
            write(output)
            cut.strike("written")

        def check_and_strike():
            check()
            cut.strike("flushed")

        cut.note_save()
        size = commit(path, trailer, write_and_strike, check_and_strike)
        if not cut.is_made.is_set():  # otherwise the process counts as dead, and its notifications do not count
            committed.append(os.path.basename(path))
        cut.strike("committed")
        return size

    files.commit = cut_commit  # type: ignore[assignment]
    for _ in range(cuts):
        mount(image, directory)
        cut = Cut(directory, choose)
        assert not train(directory, cut), "the training ended before it was cut"
        unmount(directory)
        mount(image, directory)
        checkpoints = os.path.join(directory, os.path.dirname(TEMPLATE))
        found = sorted(os.listdir(checkpoints)) if os.path.isdir(checkpoints) else []
        visible = [name for name in found if not name.startswith(".")]
        places[cut.place] += 1
        for name in visible:
            assert name == f"b{read_verified(os.path.join(checkpoints, name)).batch:05d}.weights.h5"
        lost = set(committed[-KEPT:]) - set(visible)
        assert not lost, f"{lost} were committed and are gone; {found} are there"
        unmount(directory)
    mount(image, directory)
    cut = Cut(directory, choose)
    cut.is_made.set()  # no more of them
    assert train(directory)
    print(json.dumps({"commits": len(committed), "places": places, "left": sorted(os.listdir(checkpoints))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
