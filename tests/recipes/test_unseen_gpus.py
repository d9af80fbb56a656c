"""A warning for a job with GPUs that TensorFlow does not see."""

import pytest

from recipes.common.distribution.gpus import unseen_gpus


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
