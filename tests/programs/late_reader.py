"""Stops like a recipe whose output loses its reader during the last save, long after the signal."""

import os

from callbacks import preemption

if __name__ == "__main__":
    preemption.catch_signals()
    preemption.training_begins()
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)
    os.close(reader)
    preemption.ignore_signals()
    print("stopped", flush=True)
    os._exit(preemption.INTERRUPTED)
