"""What recipes set up for GPUs, with injected GPUs; a warning for a job with GPUs that TensorFlow does not see."""

import os
import warnings
from types import SimpleNamespace

import pytest
import tensorflow as tf

from recipes.common.distribution import get_distribution, setup
from recipes.common.distribution.gpus import give_own_threads, idle_gpus, is_deterministic, unseen_gpus
from recipes.mnist import parse_args


@pytest.mark.parametrize(
    "environment, seen, given",
    [
        ({}, 0, None),
        ({"CUDA_VISIBLE_DEVICES": "-1", "SLURM_GPUS_ON_NODE": "2"}, 0, None),  # hidden on purpose
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0, None),  # a Slurm job without GPUs
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, 0, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, "CUDA_VISIBLE_DEVICES=0,1"),
        ({"SLURM_GPUS_ON_NODE": "4"}, 0, "Slurm has allocated 4 on this node"),
    ],
)
def test_allocated_gpus_that_tensorflow_does_not_see_are_reported(environment, seen, given):
    said = unseen_gpus(environment, seen)
    assert said is None if given is None else f"THIS RUN USES NO GPU: {given}, and TensorFlow sees none." in said


@pytest.mark.parametrize(
    "flag, devices, expected",
    [
        (None, ["/cpu:0", "/cpu:1"], True),
        (None, ["/gpu:0", "/gpu:1"], False),
        (True, ["/gpu:0"], True),
        (False, ["/cpu:0"], False),
    ],
)
def test_operations_are_deterministic_by_default_only_without_gpus(flag, devices, expected):
    assert is_deterministic(flag, devices) is expected


def test_each_gpu_has_threads_of_its_own_unless_the_user_has_chosen():
    for environment, mode in (({}, "gpu_private"), ({"TF_GPU_THREAD_MODE": "global"}, "global")):
        give_own_threads(environment)
        assert environment["TF_GPU_THREAD_MODE"] == mode


@pytest.fixture
def two_gpus(monkeypatch):
    """Shows two GPUs to recipes. Returns what was asked of TensorFlow."""
    asked = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one", "two"] if kind == "GPU" else ["cpu"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, grows: asked.append((gpu, grows)))
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append("determinism"))
    monkeypatch.setenv("TF_GPU_THREAD_MODE", "")
    monkeypatch.delenv("TF_GPU_THREAD_MODE")
    return asked


@pytest.mark.parametrize("flags, is_on", [([], False), (["--no-deterministic"], False), (["--deterministic"], True)])
def test_a_recipe_on_gpus_is_fast_by_default_and_exact_on_request(two_gpus, flags, is_on):
    args = parse_args(["--strategy", "single", *flags])
    assert get_distribution(args).devices == ("/gpu:0",)
    assert args.deterministic is is_on
    assert two_gpus == [("one", True), ("two", True), *(["determinism"] if is_on else [])]
    assert os.environ["TF_GPU_THREAD_MODE"] == "gpu_private"


@pytest.mark.parametrize(
    "seen, ranks, idle",
    [
        (8, 1, "GPUS 1 TO 7 OF THIS NODE ARE IDLE"),
        (4, 3, "GPU 3 OF THIS NODE IS IDLE"),
        (8, 8, None),
        (1, 8, None),  # Slurm shows each rank its own GPU, or ranks share one
    ],
)
def test_gpus_without_a_rank_are_named(seen, ranks, idle):
    said = idle_gpus(seen, ranks)
    assert said is None if idle is None else said.startswith(f"{idle}: ") and "--nproc-per-node gpu" in said


@pytest.mark.parametrize("rank, ranks, idle", [(0, 1, ["GPU 1 OF THIS NODE IS IDLE"]), (0, 2, []), (1, 2, [])])
def test_a_rank_trains_on_one_gpu_and_says_before_training_which_gpus_are_idle(two_gpus, monkeypatch, rank, ranks, idle):
    chosen = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpus, kind: chosen.append(gpus))
    monkeypatch.setattr(
        setup, "ENGINES", {"multiworker": lambda: SimpleNamespace(rank=rank, size=ranks, gather=lambda flags: [flags])}
    )
    monkeypatch.setattr(setup, "install", lambda ranks: None)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}.items():
        monkeypatch.setenv(name, str(value))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        distribution = get_distribution(parse_args(["--strategy", "multiworker"]))
    assert [str(warning.message).partition(":")[0] for warning in said] == idle
    assert distribution.devices == ("/gpu:0",) and chosen == [[["one", "two"][rank]]]


@pytest.mark.slow
def test_the_summary_says_what_a_restart_repeats(tmp_path, recipe):
    command = ["--model", "mlp", "--workdir", tmp_path]
    code, out, _ = recipe(*command, "--epochs", 1).finish()
    assert code == 0 and "determinism  on: after a restart, the state and all later batches are the same bit for bit" in out
    code, out, _ = recipe(*command, "--epochs", 2, "--no-deterministic").finish()
    assert code == 0 and "determinism  off: a restart restores the state bit for bit; later batches may differ" in out
    assert "--deterministic on -> off" in out
