"""Reads and restores the running metrics of a model."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from callbacks.model.replicas import components


def metric_results(model: keras.Model) -> dict[str, Any]:
    """Returns the running metrics, named as in the logs: scalars as numbers, others as arrays."""

    def flat(results):
        for name, result in results.items():
            if isinstance(result, dict):
                yield from flat(result)
            else:
                array = np.asarray(result.numpy() if hasattr(result, "numpy") else result)  # Keras cannot convert a bfloat16 scalar
                yield name, float(array) if array.ndim == 0 else array

    return dict(sorted(flat(model.get_metrics_result())))


def noted_metrics(model: keras.Model) -> Callable[[], None]:
    """Reads the running metrics of a model, and returns a function that restores them."""
    strategy = model.distribute_strategy
    parts = [part for variable in model.metrics_variables for part in components(strategy, variable)]
    noted = [(part, part.read_value()) for part in parts]

    def restore():
        for part, value in noted:
            part.assign(value)

    return restore
