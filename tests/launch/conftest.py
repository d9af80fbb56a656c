"""Fixtures for tests of the launcher."""

import random

import pytest

from launch.network.ports import Ports


@pytest.fixture
def port():
    """A free port, where node 0 may listen."""
    return Ports().take_next(random.randrange(10_000, 30_000))
