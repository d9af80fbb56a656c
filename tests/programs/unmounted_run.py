"""Trains while the disk with the checkpoints is unmounted. Run it in a mount namespace.

python tests/programs/unmounted_run.py MOUNT_POINT
"""

import subprocess
import sys

from small import Do, fit, small_model

from callbacks import GlobalStepCheckpoint


def unmount():
    checkpoint._writer.finish()
    subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    disk = sys.argv[1]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
    checkpoint = GlobalStepCheckpoint(disk + "/run/b{batch}.weights.h5", save_freq=2)
    fit(small_model(), checkpoint, Do(5, unmount))
