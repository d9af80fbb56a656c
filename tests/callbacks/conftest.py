"""Fixtures for tests of bad files and disks: the checkpoints of a small training, and C libraries that inject faults."""

import functools
import os
import shutil

import pytest
from compare import arrays
from faulty_disk import SUFFIXES, Trainer
from shims import compile_shim, compiler
from small import fit, small_model

from callbacks import GlobalStepCheckpoint


@pytest.fixture(scope="session")
def train_once(tmp_path_factory):
    """Trains once per format, for all files of tests: its suffix -> a directory with the checkpoints of batches 5 and 10."""

    @functools.cache
    def train(suffix):
        directory = tmp_path_factory.mktemp("trained")
        fit(small_model(), GlobalStepCheckpoint(str(directory / ("b{batch}" + suffix)), save_freq=5))
        return directory

    return train


@pytest.fixture(scope="module", params=[".weights.h5", ".keras"])
def trained(request, train_once):
    """A directory with the checkpoints of batches 5 and 10."""
    return train_once(request.param)


@pytest.fixture
def copies(trained, tmp_path):
    """Copies of both checkpoints in a new directory: older, newer."""
    older, newer = (shutil.copy(path, tmp_path) for path in sorted(trained.iterdir(), key=lambda path: len(path.name)))
    return tmp_path, tmp_path / older, tmp_path / newer


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compiles a C file of `tests/programs`, once: its name -> the library to preload."""
    directory = tmp_path_factory.mktemp("compiled")

    def compile(name):
        if not compiler() and not os.environ.get("CI"):
            pytest.skip("there is no C compiler")
        return compile_shim(name, directory)

    return compile


@pytest.fixture(scope="module", params=SUFFIXES)
def trainer(request, compiled, tmp_path_factory):
    """A trainer; `trainer.expected` maps names of checkpoints to their arrays in a run without faults."""
    directory = tmp_path_factory.mktemp("trainer")
    started = Trainer(compiled("io_errors"), directory, request.param)
    started.whole = directory / "whole"
    answer = started.train(started.whole, batches=40)
    assert (answer["error"], answer["seen"]) == (None, 0)
    started.expected = {path.name: arrays(path) for path in started.whole.iterdir()}
    assert sorted(started.expected) == [started.name(batch) for batch in range(2, 42, 2)]
    yield started
    started.close()
