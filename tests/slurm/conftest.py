"""The cluster of all tests here, and jobs on it."""

import shutil
import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, require_slurm
from launching import need_horovod
from slurm_jobs import ENVIRONMENT, HOROVOD, RECIPE


@pytest.fixture(scope="session")
def cluster():
    """A cluster of three nodes."""
    require_slurm()
    need_horovod()
    started = Cluster(Path(tempfile.mkdtemp(prefix="slurm-")), 3)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(started.root)


@pytest.fixture
def submit(cluster, tmp_path):
    """Submits a job with two nodes and one rank on each."""

    def start(*flags, script=HOROVOD, recipe=RECIPE, cwd=tmp_path, **env):
        return cluster.submit(*flags, script, *recipe, cwd=cwd, env={**ENVIRONMENT, **env})

    return start
