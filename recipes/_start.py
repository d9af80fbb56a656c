"""The first second of a recipe: what has to be in place before TensorFlow is imported, which takes seconds."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator

from launch import exit_codes


def start() -> None:
    """Has warnings answered, TensorFlow imported without its remarks, and Keras set up.

    USR1 or USR2 ends the process with `REQUEUE`, as it does later before training begins. `callbacks.catch_signals` takes over
    when all is imported.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os._exit(exit_codes.REQUEUE))
    os.environ["KERAS_BACKEND"] = "tensorflow"  # before TensorFlow, which may import Keras
    with _no_traceback_of_ctrl_c():
        import_tensorflow_quietly()
        _pin_keras()


@contextlib.contextmanager
def _no_traceback_of_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process without a traceback: one through a half imported TensorFlow helps nobody."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _pin_keras() -> None:
    """Gives Keras the settings that recipes are made for, whatever KERAS_BACKEND and ~/.keras/keras.json say."""
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow without its ten lines on CPU flags and CUDA, which come before any log level is read.

    They are shown if the import fails, or if TF_CPP_MIN_LOG_LEVEL is set.
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
