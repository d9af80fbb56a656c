"""Set-up of a recipe that must come before TensorFlow is imported, which takes seconds."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator

from launch import exit_codes


def start() -> None:
    """Installs signal handlers, imports TensorFlow without its messages, and configures Keras.

    USR1 or USR2 ends the process with `REQUEUE`, until `callbacks.catch_signals` replaces these handlers.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os._exit(exit_codes.REQUEUE))
    os.environ["KERAS_BACKEND"] = "tensorflow"  # before TensorFlow, which may import Keras
    with _no_traceback_of_ctrl_c():
        import_tensorflow_quietly()
        _pin_keras()


@contextlib.contextmanager
def _no_traceback_of_ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C end the process without a traceback through a partially imported TensorFlow."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _pin_keras() -> None:
    """Sets the Keras configuration that recipes need, whatever ~/.keras/keras.json contains."""
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow without its messages about CPU flags and CUDA, which ignore the log level.

    Shows the messages if the import fails, or if TF_CPP_MIN_LOG_LEVEL is set.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # relevant errors raise exceptions
    with tempfile.TemporaryFile() as messages:
        terminal = os.dup(2)
        os.dup2(messages.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            messages.seek(0)
            os.write(terminal, messages.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
