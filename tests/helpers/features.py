"""Skips tests of features that older versions of Keras lack."""

import keras
import pytest

KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])


def since_keras(minor, what):
    """Skips a test if Keras is older than 3.`minor`."""
    return pytest.mark.skipif((3, minor) > KERAS, reason=f"before Keras 3.{minor}: {what}")


SAME_FOR_ANY_REPLICAS = since_keras(8, "gradients of several replicas are summed, not averaged")
PARTIAL_EXECUTIONS = since_keras(7, "the end of an epoch that steps_per_execution does not divide reaches no callback")
MONITOR = since_keras(11, "ModelCheckpoint saves nothing where the monitored metric is missing")
CONFIG_CHECK = since_keras(12, "a model is saved without the arguments of its constructor, and cannot be loaded")
MULTI_OPTIMIZER = since_keras(15, "there is no MultiOptimizer")
