"""Runs the examples in docstrings."""

import doctest
import importlib

import pytest
from processes import ROOT

NEED_FILES = {"callbacks.resuming.restoring", "recipes.common.data.tfrecords"}  # checkpoints of a run; ImageNet
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("callbacks", "launch", "recipes")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text()
}


@pytest.mark.parametrize("module", sorted(MODULES - NEED_FILES))
def test_the_examples_in_docstrings_give_what_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted and not done.failed
