"""Tests that need a GPU. They are skipped without one; all other tests run on CPUs, even if there are GPUs."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from compare import assert_same_weights, datasets
from launching import need, need_horovod
from processes import PROGRAM_ENVIRONMENT, ROOT, USER_ENVIRONMENT, run_program


def _gpus():
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not _gpus(), reason="nvidia-smi finds no GPU on this machine")]

ON_CPU = USER_ENVIRONMENT
# Without TF32, the 10-bit multiplications that TensorFlow uses on newer GPUs: then both sides compute in float32.
ON_GPU = {**USER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "0", "NVIDIA_TF32_OVERRIDE": "0"}
GPU_PROGRAM = {**ON_GPU, "PYTHONPATH": PROGRAM_ENVIRONMENT["PYTHONPATH"]}
SHARED_GPU = {**ON_GPU, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # for processes that do not set it themselves
TOLERANCE = 1e-5  # relative to the largest weight of each variable, because the order of sums differs

MLP = ["-m", "recipes.mnist", "--model", "mlp", "--global-batch-size", "128", "--epochs", "4"]
LAST = "checkpoints/model_batch_at_00044.weights.h5"


def train(workdir, *command, env=ON_GPU, launcher=()):
    """Trains a recipe in `workdir`. Returns its output."""
    if launcher:
        launcher = ["-m", "launch", "--standalone", "--log-dir", workdir / "ranks", *launcher]
    words = [sys.executable, *launcher, *command, "--workdir", workdir]
    done = subprocess.run([str(word) for word in words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_close(one, other):
    expected, found = datasets(one / LAST), datasets(other / LAST)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if value.dtype.kind == "f":
            difference = np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-30)
            assert difference <= TOLERANCE, (name, difference)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """Trains four epochs of the MLP without a GPU."""
    workdir = tmp_path_factory.mktemp("cpu")
    train(workdir, *MLP, env=ON_CPU)
    return workdir


@pytest.mark.parametrize("strategy", ["single", "mirrored"])
def test_a_gpu_trains_like_a_cpu_and_is_named(on_cpu, tmp_path, strategy):
    out = train(tmp_path, *MLP, "--strategy", strategy)
    assert f"strategy     {strategy}, 1 replica: /gpu:0 (" in out
    assert_close(on_cpu, tmp_path)


@pytest.mark.parametrize("flags, state", [([], "off"), (["--deterministic"], "on")])
def test_operations_are_deterministic_on_a_gpu_only_on_request(tmp_path, flags, state):
    assert f"determinism  {state}: " in train(tmp_path, *MLP, *flags)


@pytest.mark.parametrize("mode", [None, "global"])
def test_a_gpu_has_threads_of_its_own_unless_the_user_has_chosen(tmp_path, mode):
    environment = GPU_PROGRAM if mode is None else {**GPU_PROGRAM, "TF_GPU_THREAD_MODE": mode}
    done = run_program("threads_on_gpu.py", *MLP[2:], "--workdir", tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("gpu_private" in done.stdout.split("THREADS")[1]) is (mode is None)


def test_the_benchmark_runs():
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--seconds", "0.5"]
    done = subprocess.run(command, cwd=ROOT, env=ON_GPU, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout and done.stdout.count("| -") == 0, done.stdout


def test_virtual_devices_are_refused_beside_a_gpu(tmp_path):
    command = [sys.executable, *MLP, "--virtual-devices", "2", "--workdir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ON_GPU, capture_output=True, text=True)
    assert done.returncode == 2 and "this machine has GPUs (1)" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_memory_grows_on_demand(tmp_path):
    done = run_program("memory_on_gpu.py", *MLP[2:], "--workdir", tmp_path, env=GPU_PROGRAM)
    assert done.returncode == 0, done.stderr
    used, total = (int(number) for number in done.stdout.split("MEMORY ")[1].split(","))
    assert used < total / 2


def test_a_run_on_a_gpu_that_is_killed_ends_with_the_same_bits(tmp_path):
    """With BatchNorm and Dropout through cuDNN, with TensorFlow's deterministic operations."""
    command = ["-m", "recipes.mnist", "--epochs", "4", "--deterministic"]
    train(tmp_path / "uninterrupted", *command, "--save-freq", "1000")
    killed = [sys.executable, *command, "--save-freq", "1", "--workdir", str(tmp_path / "killed")]
    for batch in (10, 25, 70):
        reached = tmp_path / "killed" / "checkpoints" / f"model_batch_at_{batch:05d}.weights.h5"
        process = subprocess.Popen(killed, cwd=ROOT, env=ON_GPU, stdout=subprocess.DEVNULL)
        while not reached.exists():
            assert process.poll() is None, "ended before it was killed"
        process.kill()
        process.wait()
    train(tmp_path / "killed", *command, "--save-freq", "1")
    last = "checkpoints/model_batch_at_00088.weights.h5"
    assert_same_weights(tmp_path / "uninterrupted" / last, tmp_path / "killed" / last)


@pytest.mark.parametrize(
    "flags", [["--mixed-precision", "float16"], ["--mixed-precision", "bfloat16", "--steps-per-execution", "4"]]
)
def test_mixed_precision_learns(tmp_path, flags):
    out = train(tmp_path, "-m", "recipes.mnist", "--epochs", "8", *flags)
    assert float(out.split("val_accuracy ")[1].split(",")[0]) > 0.95


@pytest.mark.parametrize("engine, ranks", [("horovod", 1), ("horovod", 2), ("multiworker", 1)])
def test_ranks_on_one_gpu_train_like_a_cpu_without_xla(on_cpu, tmp_path, engine, ranks):
    need(engine)
    if ranks > 1 and _built_with_nccl() and os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") != "1":
        pytest.skip("NCCL refuses two ranks on one GPU, but from 2.30 on with NCCL_MULTI_RANK_GPU_ENABLE=1; Gloo does not")
    out = train(tmp_path, *MLP, "--strategy", engine, launcher=["--nproc-per-node", str(ranks)])
    assert f"strategy     {engine}, {ranks} replica" in out and "/gpu:0 (" in out
    assert_close(on_cpu, tmp_path)


def test_ranks_turn_off_xla_that_keras_has_turned_on(tmp_path):
    need_horovod()
    out = train(tmp_path, *MLP, "--strategy", "horovod", "--no-deterministic", launcher=["--nproc-per-node", "1"])
    assert "jit-compile  off on several replicas (not measured on a GPU)" in out


def _built_with_nccl():
    code = "import horovod.tensorflow as hvd; raise SystemExit(0 if hvd.nccl_built() else 1)"
    return subprocess.run([sys.executable, "-c", code], env=ON_GPU, capture_output=True).returncode == 0


OF_CALLBACKS = ["background_writer", "counting", "models", "whole_state", "stock_keras_loads"]


@pytest.mark.parametrize("file", [*(f"callbacks/test_{name}.py" for name in OF_CALLBACKS), "recipes/test_xla_random.py"])
def test_tests_that_pass_on_a_cpu_pass_on_a_gpu(file, tmp_path):
    """Snapshots, counting under XLA, which Keras turns on here, restoring, and random numbers."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'pytest'}"]
    environment = {**SHARED_GPU, "TESTS_USE_GPU": "1"}
    done = subprocess.run([*command, f"tests/{file}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("xla", [True, False])
def test_a_save_on_a_gpu_is_of_one_instant_while_training_continues(tmp_path, xla):
    done = run_program("saves_on_gpu.py", tmp_path, xla, env={**GPU_PROGRAM, "TF_FORCE_GPU_ALLOW_GROWTH": "true"})
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "True").iterdir())
    assert len(written) == 8
    for name in written:
        assert_same_weights(tmp_path / "True" / name, tmp_path / "False" / name)
