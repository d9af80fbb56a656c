"""What tests share: real processes that run recipes, and four CPU devices in the test process itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# The tests count on CPU devices, also where there are GPUs: tests/test_gpu.py shows those to what it starts.
if os.environ.get("TESTS_USE_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
USER_ENVIRONMENT = dict(os.environ)  # what a user's process has, before this one silences TensorFlow
if "PYTEST_XDIST_WORKER" in os.environ:  # the process that started this one has done so
    USER_ENVIRONMENT.pop("TF_CPP_MIN_LOG_LEVEL", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from launching import launch  # noqa: F401, a fixture

from callbacks.state import read_header

ROOT = Path(__file__).parent.parent
DEVICES = 4


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what is to run in the background that way
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)  # for fixtures of whole modules


def pytest_collection_modifyitems(items):
    """Tests of a file run in one process, which share its fixtures; so do those that use the launcher's port, all of them."""
    for item in items:
        uses_port = item.path.stem.startswith(("test_launch", "test_readme"))
        item.add_marker(pytest.mark.xdist_group("launch" if uses_port else item.path.stem))


@pytest.fixture(autouse=True)
def fresh_keras(request):
    """Each test starts from the same seeds and names, and leaves no policy behind."""
    if "launch" in request.fixturenames:  # trains in other processes, and would wait for a third of a second
        yield
        return
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(autouse=True)
def same_signals():
    """A recipe's `run` catches signals, and ignores them when it ends; the next test's processes would inherit that."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def strategy():
    """Makes the strategy for a number of CPU replicas."""

    def make(replicas):
        if replicas == 1:
            return tf.distribute.get_strategy()
        return tf.distribute.MirroredStrategy(
            [f"/cpu:{i}" for i in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
        )

    return make


class Process:
    """A recipe in a process of its own."""

    def __init__(self, *args, cwd=ROOT, env=None, module="recipes.mnist"):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=cwd,
            env={**USER_ENVIRONMENT, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, timeout=300):
        """Waits for the end: (exit code, standard output, standard error)."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def kill_when(self, condition, timeout=300):
        """Sends SIGKILL at the moment that the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended by itself: {self.process.communicate()}"
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.0005)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def recipe():
    """Starts `python -m recipes.mnist` with these flags, in a real process; ends what is left over."""
    started = []

    def start(*args, **options):
        started.append(Process(*args, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()


def datasets(path):
    """Every array of a `.weights.h5` but the part that this project adds: name -> value."""
    found = {}
    with h5py.File(path, "r") as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and not name.startswith("global_step"):
                found[name] = item[()]

        file.visititems(visit)
    return found


def lasting_header(path):
    """What a checkpoint tells beside its arrays, without the seconds that training has taken."""
    header = read_header(str(path))
    header["callbacks"].pop("GlobalStepTensorBoard-1", None)
    return header


def assert_same_weights(one, other):
    """Two checkpoints hold bit-identical weights and optimizer state."""
    a, b = datasets(one), datasets(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_rest(one, other):
    """Two checkpoints hold the same beside their weights: counters, history, logs, and what each replica has for itself."""
    header = lasting_header(one)
    assert header == lasting_header(other)
    with h5py.File(one, "r") as a, h5py.File(other, "r") as b:
        for i, variable in enumerate(header["beside"]):
            stored, expected = (file[f"global_step/variables/{i}"][()] for file in (a, b))
            np.testing.assert_array_equal(stored, expected, err_msg=variable)
