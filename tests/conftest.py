"""Fixtures for all tests: Keras as in a new process, four CPU devices, and recipes in their own processes."""

import gc
import signal

from processes import Process  # silences TensorFlow, so import it first

import keras
import pytest
import tensorflow as tf
from launching import ENGINES, launch  # noqa: F401, a fixture
from tensorflow.python.framework import config
from xdist.scheduler import LoadScopeScheduling

from callbacks import preemption
from callbacks import ranks as callbacks_ranks
from callbacks.report import run_record

DEVICES = 4
# What the code remembers of this process, which belongs to one run in real life: a requested stop, a failure, the ranks.
OF_ONE_RUN = {
    preemption: [
        "_requested", "_reason", "_training", "_interrupted", "_job_end", "_begun", "_wakeup", "_for_good",
    ],
    run_record: ["_failure"],
    callbacks_ranks: ["_current"],
}  # fmt: skip


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does this for background processes
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)  # for module fixtures


# The longest, in the order in which they start: one process runs the tests of a file, and the last one would run alone. Tests of
# Slurm mostly wait, and those of versions first download.
LONGEST = (
    "slurm/", "versions/", "launch/", "recipes/test_ranks_recipe.py", "recipes/test_jit",
    "callbacks/test_kinds_of_models.py", "callbacks/test_report_of_a_killed_run.py", "callbacks/test_disk_errors.py",
    "callbacks/test_preemption.py", "callbacks/test_faults.py", "recipes/test_transformer_lm.py", "recipes/test_imagenet.py",
    "recipes/test_recipes_readme.py", "recipes/test_xla_random.py", "benchmarks/",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Runs the longest tests first."""

    def place(item):
        return next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(f"tests/{name}")), len(LONGEST))

    items.sort(key=place)


class ByFile(LoadScopeScheduling):
    """Runs the tests of a file in one process, which shares its fixtures; also all that use the launcher's port, or the cluster."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        if "/slurm/" in file:
            return "slurm"
        return "launch" if "/launch/" in file or file.endswith("test_readme.py") else file

    def _reschedule(self, node):
        """Gives a process the next file only when it needs it to start its last test, for which it must know the one after."""
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            if self.workqueue:
                self._assign_work_unit(node)
            else:
                node.shutdown()

    def remove_node(self, node):
        """Returns the test in which a process has died, if it has, and leaves the tests after it to the other processes.

        The method of xdist also leaves them the files whose tests have all run. A process that gets such a file waits forever.
        """
        work = self.assigned_work.pop(node)
        left = {file: [test for test, has_run in tests.items() if not has_run] for file, tests in work.items()}
        died_in = next((tests.pop(0) for tests in left.values() if tests), None)
        self.workqueue.update({file: dict.fromkeys(tests, False) for file, tests in left.items() if tests})
        for each in self.nodes:
            self._reschedule(each)
        return died_in


@pytest.hookimpl(optionalhook=True)  # with -p no:xdist there is none
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_finish():
    """Excludes imported modules from garbage collection, which would take a fifth of a second in each `clear_session`.

    A collection waits for the threads of each iterator that it deletes. The second call makes Python forget the number of frozen
    objects, by which it would delay the first collection until there are hundreds of iterators, and a test waits for minutes.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def no_autotuning():
    """Makes iterators without tf.data's autotuning, which changes only their speed.

    Its thread may sleep for seconds, and the deletion of an iterator in mid-epoch waits for it: garbage collections took minutes.
    """

    def without_autotuning(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset.with_options(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.data.Dataset, "_apply_debug_options", without_autotuning)
        yield


@pytest.fixture(autouse=True)
def fresh_keras(request):
    """Starts each test with the same seeds and names, and resets the dtype policy."""
    if "launch" in request.fixturenames:  # trains in other processes, and would wait for a third of a second
        yield
        return
    keras.backend.clear_session(free_memory=False)  # a garbage collection takes longer than most tests
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def no_determinism():
    """As by default on GPUs."""
    config.disable_op_determinism()
    yield
    config.enable_op_determinism()


@pytest.fixture(autouse=True)
def same_process():
    """Restores what the code remembers of one run."""
    before = [(module, name, getattr(module, name)) for module, names in OF_ONE_RUN.items() for name in names]
    replaced = dict(preemption._replaced)
    yield
    for module, name, value in before:
        setattr(module, name, value)
    preemption._replaced.clear()
    preemption._replaced.update(replaced)


@pytest.fixture(autouse=True)
def same_signals():
    """Restores signal handlers, because processes of the next test would inherit those of a recipe's `run`."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request):
    """The engine that carries gradients and messages between ranks."""
    return request.param


@pytest.fixture
def strategy():
    """Creates the strategy for a number of CPU replicas."""

    def make(replicas):
        if replicas == 1:
            return tf.distribute.get_strategy()
        return tf.distribute.MirroredStrategy(
            [f"/cpu:{i}" for i in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
        )

    return make


@pytest.fixture
def recipe():
    """Starts `python -m recipes.mnist` with these flags in a real process, and ends remaining processes."""
    started = []

    def start(*args, **options):
        started.append(Process(*args, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
