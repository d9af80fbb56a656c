"""Catches signals and trains: a `fit` that ends, one that fails, and one that is stopped after a callback has trained."""

import os
import signal
import sys

from small import Do, fit, small_model

from callbacks import GlobalStepCheckpoint, catch_signals


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]


def send(number):
    os.kill(os.getpid(), number)


def train(*others, template="b{batch}.weights.h5"):
    fit(small_model(), GlobalStepCheckpoint(f"{sys.argv[1]}/{template}", save_freq=1000), *others)


def fail():
    raise RuntimeError("a batch fails")


before = handlers()
catch_signals()
train(Do(1, lambda: print("caught", handlers() != before)))
print("given back", handlers() == before)
try:
    train(Do(1, fail))
except RuntimeError:
    try:
        send(signal.SIGINT)
        signal.sigtimedwait([], 1)
    except KeyboardInterrupt:
        print("interrupted", handlers() == before)
train(Do(1, lambda: train(template="of_callback_{batch}.weights.h5")), Do(3, lambda: send(signal.SIGTERM)))
