"""Training recipes: plain scripts, each started as `python -m recipes.NAME`."""

import contextlib
import os
import signal
import tempfile
import threading


def _import_tensorflow_quietly():
    """Imports TensorFlow without its ten lines on CPU flags and CUDA, which come before any log level can be set.

    They are shown if the import fails, and left alone where TF_CPP_MIN_LOG_LEVEL says what somebody wants to see.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # errors that matter come as exceptions
    with tempfile.TemporaryFile() as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _leave_when_warned():
    """A warning while TensorFlow is imported, which takes seconds, is answered as one that comes before training."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os._exit(75))  # callbacks.preemption.WARNED, not imported yet


@contextlib.contextmanager
def _no_traceback_of_ctrl_c():
    """A traceback through a half imported TensorFlow tells nobody anything."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if threading.current_thread() is threading.main_thread():
    with _no_traceback_of_ctrl_c():
        _leave_when_warned()
        _import_tensorflow_quietly()
else:
    _import_tensorflow_quietly()
