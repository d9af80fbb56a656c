"""Fixtures for tests of the launcher."""

import pytest
from free_ports import free_ports


@pytest.fixture
def port():
    """A free port, where node 0 may listen."""
    return free_ports(1)[0]
