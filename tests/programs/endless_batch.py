"""Trains on a batch that never ends, and handles signals like a recipe."""

import threading

from callbacks import preemption

if __name__ == "__main__":
    preemption.catch_signals()
    preemption.training_begins()
    print("trains", flush=True)
    threading.Event().wait()
