"""Trains in another thread: until TERM, or while the main thread has ended already."""

import contextlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from small import Do, fit, small_model

from callbacks import GlobalStepCheckpoint, Preempted, catch_signals, preemption


def train(*others):
    fit(small_model(), GlobalStepCheckpoint(sys.argv[1] + "/b{batch}.weights.h5", save_freq=4), *others)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    while not preemption.stop_requested():  # the main thread handles signals
        time.sleep(0.01)


def train_until_term():
    try:
        train(Do(6, terminate))
    except Preempted as stopped:
        print("stopped", stopped.code)


def wait_for_exit():
    with contextlib.suppress(RuntimeError):  # no new thread
        while True:
            ThreadPoolExecutor(1).submit(time.sleep, 0.01).result()


catch_signals()
if sys.argv[2] == "until TERM":
    thread = threading.Thread(target=train_until_term)
    thread.start()
    thread.join()
else:
    threading.Thread(target=train, args=[Do(1, wait_for_exit)]).start()
