"""The measurements of `benchmarks.gpu`, each in a process of its own: speed of a training, cost of a save, copies to the host."""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.checkpoint_blocked_time import EVERY, OURS, SAVERS, time_saves
from benchmarks.gpu_models import WORKLOADS
from callbacks.device_usage import peak_tflops
from callbacks.flops import FORWARD_AND_BACKWARD, graph_flops
from callbacks.keras_private import array_view
from recipes.common.data import Arrays, training_data
from recipes.common.distribution import get_distribution
from recipes.common.run import training_callbacks

WARM_UP = 5  # batches
NEVER = str(2**31 - 1)  # batches between saves
EPOCH = 1 << 20  # samples, so that no epoch ends during a measurement


@dataclass(frozen=True)
class Cell:
    """A training to measure.

    Args:
        workload: a key of `WORKLOADS`.
        batch: samples per batch.
        precision: `float32`, `TF32` or `bfloat16`.
        is_plain: whether it is a plain `fit` of Keras, or the recipe's training with all callbacks.
        compiled: whether XLA compiles it; None: Keras decides.
        deterministic: whether operations are deterministic.
        prefetched: whether batches are prefetched to the device; for a plain `fit`.
    """

    workload: str
    batch: int
    precision: str
    is_plain: bool = False
    compiled: bool | None = False
    deterministic: bool = False
    prefetched: bool = False


@dataclass(frozen=True)
class Speed:
    """The speed of a training: images or tokens per second, and model FLOPs utilization (None: unknown)."""

    per_second: float
    utilization: float | None


@dataclass(frozen=True)
class SaveCost:
    """The cost of a save: bytes of the state, seconds of blocked time, and additional bytes of device memory (None: on a CPU)."""

    bytes: int
    blocked: float
    device_memory: int | None


class Repeated:
    """A data set of `EPOCH` samples that repeats arrays."""

    def __init__(self, arrays: Arrays):
        self._arrays, self.fetched_together = arrays, arrays.fetched_together

    def __len__(self):
        return EPOCH

    def fetch(self, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return self._arrays.fetch(numbers % len(self._arrays))


class Clock(keras.callbacks.Callback):
    """Measures batches per second, then stops `fit`. The first batches do not count, because they trace, compile and autotune.

    Args:
        seconds: how long to measure.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds, self._batches, self._began = seconds, 0, 0.0
        self.batches_per_second = 0.0

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        counted = self._batches - WARM_UP
        if counted == 0:
            wait_for_device(logs)
            self._began = time.perf_counter()
        elif counted > 0 and time.perf_counter() - self._began >= self._seconds:
            wait_for_device(logs)
            self.batches_per_second = counted / (time.perf_counter() - self._began)
            self.model.stop_training = True


def wait_for_device(logs: dict[str, Any]) -> None:
    """Waits until the batch with these logs is computed, because operations on GPUs are asynchronous."""
    float(logs["loss"])


def serve(tasks: list[tuple[Any, Callable, tuple]], environment: Mapping[str, str], scratch: str, connection: Connection) -> None:
    """Executes tasks in order, and sends each key with the result or an error message.

    Args:
        tasks: key, function and arguments of each task.
        environment: additional environment variables. TensorFlow reads them at the first operation.
        scratch: the directory for temporary files.
        connection: receives the results.
    """
    os.environ.update(environment)
    tempfile.tempdir = scratch
    for key, function, arguments in tasks:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # drops the output of the recipe
                result = function(*arguments)
        except tf.errors.ResourceExhaustedError:
            result = "out of memory"
        except Exception as error:
            result = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        keras.backend.clear_session()
        connection.send((key, result))


def speed(cell: Cell, seconds: float) -> Speed:
    """Measures a training for some seconds."""
    workload, clock = WORKLOADS[cell.workload], Clock(seconds)
    with tempfile.TemporaryDirectory() as workdir:
        model, fit = (_plain if cell.is_plain else _ours)(cell, workdir)
        fit(clock)
        samples_per_second = clock.batches_per_second * cell.batch
        shape = model.inputs[0].shape[1:] if workload.unit == "images" else workload.samples()[0].shape[1:]
        units = shape[0] if workload.unit == "tokens" else 1
        return Speed(samples_per_second * units, _utilization(model, cell.precision, shape, samples_per_second))


def save_cost(name: str, batch: int, rounds: int = 3) -> SaveCost:
    """Measures saves during a recipe's training in bfloat16."""
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryDirectory() as directory:
        model, batches, _ = _prepared(Cell(name, batch, "bfloat16"), workdir)
        memory = _PeakMemory()
        saver = SAVERS[OURS]
        callback = saver.callback(directory)
        times = time_saves(model, batches, callback, lambda: saver.wait(callback), rounds, beside=[memory])
        state = sum(v.value.dtype.size * int(np.prod(v.shape)) for v in [*model.variables, *model.optimizer.variables])
    of_saves, of_others = memory.peaks[EVERY::EVERY], memory.peaks[EVERY + 1 :: EVERY]
    extra = max(of_saves) - max(of_others) if memory.peaks else None
    return SaveCost(state, float(np.median([blocked for blocked, *_ in times])), extra)


def copies_to_host(name: str, rounds: int = 3) -> dict[str, float]:
    """Returns bytes per second of copies of a model's weights to the host, to `pageable` and to `pinned` memory.

    TensorFlow's eager copies, which the writer of checkpoints uses, go to pageable memory (`TensorHandle::CopyToDevice` does not
    request `gpu_compatible` memory). In a graph, an edge from a GPU to a CPU goes to pinned memory (`InferAllocAttr`).
    """
    model = WORKLOADS[name].model()
    values = [v.value.read_value() for v in model.variables if v.dtype == "float32"]

    @tf.function(autograph=False)
    def in_graph(values):
        with tf.device("/cpu:0"):
            return [tf.identity(value) for value in values]

    size = sum(value.dtype.size * value.shape.num_elements() for value in values)
    rates = {}
    for kind, copy in (("pageable", lambda: values), ("pinned", lambda: in_graph(values))):
        taken = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            for tensor in copy():
                array_view(tensor)
            taken.append(time.perf_counter() - began)
        rates[kind] = size / min(taken[1:])
    return rates


class _PeakMemory(keras.callbacks.Callback):
    """Records the peak memory of the first GPU for each batch; records nothing on a CPU."""

    def __init__(self):
        super().__init__()
        self._gpus, self.peaks = tf.config.list_physical_devices("GPU"), []

    def on_train_batch_begin(self, batch, logs=None):
        if self._gpus:
            tf.config.experimental.reset_memory_stats("GPU:0")

    def on_train_batch_end(self, batch, logs=None):
        wait_for_device(logs)
        if self._gpus:
            self.peaks.append(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def _prepared(cell, workdir):
    """Returns the recipe's compiled model, its data and its callbacks."""
    workload = WORKLOADS[cell.workload]
    flags = ["--strategy", "single", "--workdir", workdir, "--save-freq", NEVER, "--global-batch-size", str(cell.batch)]
    flags += ["--deterministic" if cell.deterministic else "--no-deterministic", "--jit-compile", "on" if cell.compiled else "off"]
    args = workload.parse_args([*workload.flags, *flags, *_set_precision(cell.precision)])
    distribution = get_distribution(args)
    with distribution.scope():
        model = workload.model()
        # A callback of the recipe compiles as `--jit-compile` says.
        model.compile(distribution.optimizer(workload.optimizer()), workload.loss(), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    source = Repeated(Arrays(*workload.samples()))
    batches = training_data(source, model, distribution, global_batch_size=cell.batch, seed=0)
    return model, batches, training_callbacks(args, distribution, batches)


def _ours(cell, workdir):
    model, batches, callbacks = _prepared(cell, workdir)
    return model, lambda clock: model.fit(batches, verbose=0, callbacks=[*callbacks, clock])


def _plain(cell, workdir):
    """Returns a model and its `fit` as in a script without this repository."""
    workload = WORKLOADS[cell.workload]
    policy = "mixed_bfloat16" if _set_precision(cell.precision) else "float32"
    keras.mixed_precision.set_global_policy(policy)
    model = workload.model()
    model.compile(workload.optimizer(), workload.loss(), jit_compile="auto" if cell.compiled is None else cell.compiled)
    with tf.device("/cpu:0"):
        samples = tf.data.Dataset.from_tensor_slices(workload.samples())
    data = samples.shuffle(1024).repeat().batch(cell.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    if cell.prefetched:
        device = "/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0"
        data = data.apply(tf.data.experimental.prefetch_to_device(device))
    return model, lambda clock: model.fit(data, steps_per_epoch=EPOCH // cell.batch, verbose=0, callbacks=[clock])


def _set_precision(precision):
    """Turns TF32 on or off, and resets the policy to float32. Returns the recipe's flags for the precision."""
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    keras.mixed_precision.set_global_policy("float32")
    return ["--mixed-precision", precision] if precision == "bfloat16" else []


def _utilization(model, precision, shape, samples_per_second):
    """Returns model FLOPs utilization; None on a CPU, and for float32 without TF32, whose peak is unknown."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or precision == "float32":
        return None
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
    peak = peak_tflops(name, "bfloat16" if precision == "bfloat16" else "float32")
    forward = tf.function(lambda batch: model(batch, training=False), autograph=False)
    flops = graph_flops(forward.get_concrete_function(tf.TensorSpec([1, *shape], model.inputs[0].dtype)).graph)
    return FORWARD_AND_BACKWARD * flops * samples_per_second / (peak * 1e12) if peak and flops else None
