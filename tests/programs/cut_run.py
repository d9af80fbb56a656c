"""A training on a disk that loses its power again and again: the file system is shut down under it, unmounted and mounted.

unshare --mount python tests/programs/cut_run.py IMAGE DIRECTORY CUTS SEED

IMAGE holds a file system, DIRECTORY is where it is mounted. Each life of the training resumes from what the cut before has left,
and is cut at a random moment, most often in the middle of a save. The last one is left alone. Prints what was found, as JSON.
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

import keras
import numpy as np
import tensorflow as tf

from callbacks import CheckpointWriteError, GlobalStepCheckpoint, files
from callbacks.restoring import read_whole

SHUT_DOWN = 0x8004587D  # FS_IOC_SHUTDOWN of ext4 and xfs
FLUSH_JOURNAL, FLUSH_NOTHING = 1, 2
EPOCHS, BATCHES, BATCH, KEPT = 40, 10, 4, 3
TEMPLATE = "run/checkpoints/b{batch:05d}.weights.h5"


class Cut(keras.callbacks.Callback):
    """Shuts the file system down, some batches after training begins."""

    def __init__(self, directory, choose):
        super().__init__()
        self._directory, self._after = directory, choose.randrange(1, 8)
        self._pause, self._how = choose.random() * 0.02, choose.choice((FLUSH_JOURNAL, FLUSH_NOTHING))
        self._seen = 0
        self.is_due, self.is_inside_a_save = threading.Event(), False

    def on_train_batch_end(self, batch, logs=None):
        self._seen += 1
        if self._seen == self._after:
            threading.Timer(self._pause, self._shut_down).start()
        elif self._seen > self._after:
            time.sleep(0.005)  # or the training would be at its end before the cut

    def _shut_down(self):
        descriptor = os.open(self._directory, os.O_RDONLY)
        self.is_due.set()
        self.is_inside_a_save = bool(files._in_flight)
        fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", self._how))
        os.close(descriptor)


def mount(image, directory):
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)


def unmount(directory):
    """Waits until nobody of this process looks at a file there any more."""
    for _ in range(200):
        if subprocess.run(["umount", directory], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    subprocess.run(["umount", directory], check=True)


def train(directory, *callbacks):
    """Resumes, and trains until the disk is gone. Returns whether it came to its end."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(BATCHES * BATCH, size)).astype("float32") for size in (6, 1))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(160), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
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
    choose, inside = random.Random(seed), 0
    committed: list[str] = []
    commit = files.commit

    def noted(path, *rest):
        size = commit(path, *rest)
        if not cut.is_due.is_set():  # else the process would be dead by now, and what it is told does not count
            committed.append(os.path.basename(path))
        return size

    files.commit = noted
    for _ in range(cuts):
        mount(image, directory)
        cut = Cut(directory, choose)
        assert not train(directory, cut), "the training ended before it was cut"
        unmount(directory)
        mount(image, directory)
        checkpoints = os.path.join(directory, os.path.dirname(TEMPLATE))
        found = sorted(os.listdir(checkpoints)) if os.path.isdir(checkpoints) else []
        visible = [name for name in found if not name.startswith(".")]
        inside += cut.is_inside_a_save
        for name in visible:
            assert name == f"b{read_whole(os.path.join(checkpoints, name)).batch:05d}.weights.h5"
        lost = set(committed[-KEPT:]) - set(visible)
        assert not lost, f"{lost} were committed and are gone; {found} are there"
        unmount(directory)
    mount(image, directory)
    cut = Cut(directory, choose)  # which nobody makes
    assert train(directory)
    print(json.dumps({"commits": len(committed), "inside a save": inside, "left": sorted(os.listdir(checkpoints))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
