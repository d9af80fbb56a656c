"""Fixtures for tests of corrupt and hostile files: the checkpoints of a small training."""

import shutil

import pytest
from small import fit, small_model

from callbacks import GlobalStepCheckpoint


@pytest.fixture(scope="module", params=[".weights.h5", ".keras"])
def trained(request, tmp_path_factory):
    """A directory with the checkpoints of batches 5 and 10."""
    directory = tmp_path_factory.mktemp("trained")
    fit(small_model(), GlobalStepCheckpoint(str(directory / ("b{batch}" + request.param)), save_freq=5))
    return directory


@pytest.fixture
def copies(trained, tmp_path):
    """Copies of both checkpoints in a new directory: older, newer."""
    older, newer = (shutil.copy(path, tmp_path) for path in sorted(trained.iterdir(), key=lambda path: len(path.name)))
    return tmp_path, tmp_path / older, tmp_path / newer
