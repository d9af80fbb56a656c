"""Catches signals and trains three times: a `fit` that ends, one that fails, and one that is stopped."""

import os
import signal
import sys

from small import Do, fit, small_model

from callbacks import GlobalStepCheckpoint, catch_signals


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]


def send(number):
    os.kill(os.getpid(), number)


def train(*others):
    fit(small_model(), GlobalStepCheckpoint(sys.argv[1] + "/b{batch}.weights.h5", save_freq=1000), *others)


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
train(Do(3, lambda: send(signal.SIGTERM)))
