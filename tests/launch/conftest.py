"""The port of a rendezvous."""

import pytest
from free_ports import free_ports


@pytest.fixture
def port():
    """A free port, which the launcher reserves for itself."""
    return free_ports(1)[0]
