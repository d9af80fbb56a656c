"""The running metrics of a model, named as in its logs."""

from typing import Any

import keras


def metric_results(model: keras.Model) -> dict[str, Any]:
    """Returns the running metrics of a model: scalars as numbers, others as arrays."""

    def flat(results):
        for name, result in results.items():
            if isinstance(result, dict):
                yield from flat(result)
            else:
                array = keras.ops.convert_to_numpy(result)
                yield name, float(array) if array.ndim == 0 else array

    return dict(sorted(flat(model.get_metrics_result())))
