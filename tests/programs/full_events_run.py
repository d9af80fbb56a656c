"""Trains recipes.mnist; from batch 20 on, no event can be written, as on a full disk.

python tests/programs/full_events_run.py FLAG...
"""

import resource
import signal
import sys

from callbacks import event_files
from recipes.common.run import run  # silences TensorFlow, so it comes first
from recipes.mnist import main

add = event_files.EventFile.scalars


def scalars(self, step, *rest):
    if step >= 20:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    add(self, step, *rest)


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    event_files.EventFile.scalars = scalars  # type: ignore[method-assign]
    run(lambda: main(sys.argv[1:]))
