"""The devices and ranks of a run, and how they share the work."""

from recipes.common.distribution.replicas import Distribution
from recipes.common.distribution.setup import check_global_batch, get_distribution

__all__ = ["Distribution", "check_global_batch", "get_distribution"]
