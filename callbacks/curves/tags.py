"""The names of the curves in TensorBoard and their descriptions."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

DESCRIPTIONS = {
    "batch_steps_per_second": "Batches per second since the previous point, without the time of validation.",
    "throughput/samples_per_second": "Samples per second on all replicas since the previous point, without the time of "
    "validation and with that of checkpoints.",
    "throughput/samples_per_second_per_replica": "The same per replica.",
    "time/step_median_ms": "Milliseconds from the beginning to the end of a batch: median since the previous point.",
    "time/step_p95_ms": "The same, 95th percentile.",
    "time/data_wait_share": "Share of the batches' time in which the chief waited for data, measured on a sample of batches.",
    "checkpoint/blocked_seconds": "Seconds that training stood still for checkpoints since the previous point.",
    "checkpoint/write_seconds": "Seconds of writing the checkpoints that were finished since the previous point; mostly, training "
    "continued meanwhile.",
    "checkpoint/write_megabytes_per_second": "Speed of these writes; 0 if none was finished.",
    "checkpoint/interval_seconds": "Seconds between checkpoints, chosen by save_freq='auto'.",
    "ranks/step_spread_ms": "Difference between the slowest and the fastest rank: median time from the beginning of a batch until "
    "its gradients are ready and it waits for the other ranks.",
    "ranks/slowest": "The rank that takes the longest.",
    "run/restarts": "Number of restarts of this run.",
    "run/goodput": "Share of wall time, since the first process of the run was started, spent on training that the model still "
    "has; not on start-up, waiting for data, validation, checkpoints, the time between attempts, or batches that a kill lost.",
    "device/model_flops_utilization": "Model FLOPs utilization (MFU): three times the operations of the forward pass, as a share "
    "of the devices' peak.",
    "device/peak_memory_gigabytes": "Largest memory in use on one device of the chief so far, in GB.",
    "host/memory_gigabytes": "Host memory that the chief uses now, in GB.",
    "batch_loss_alone": "Loss of this batch alone; batch_loss is the mean of this epoch's batches so far.",
}


def describe(tag: str) -> str:
    """Returns the description of a tag, which TensorBoard shows."""
    if tag in DESCRIPTIONS:
        return DESCRIPTIONS[tag]
    kind, _, name = tag.partition("_")
    if kind == "evaluation":
        return f"{name.removesuffix('_vs_iterations')}: of an evaluation outside fit."
    if name == "learning_rate":
        return "The rate of the next update."
    return f"{name}: " + ("mean of this epoch's batches so far." if kind == "batch" else "of the epoch that ends here.")


def learning_rates(model: keras.Model) -> dict[str, float]:
    """Returns the current learning rates, named as in Keras. `keras.ops.convert_to_numpy` would take twice as long."""
    optimizer = getattr(model, "optimizer", None)  # none before `compile`
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None:
        return {}
    if hasattr(optimizer, "optimizers"):
        rates = {f"learning_rate_{each.name}": each.learning_rate for each in optimizer.optimizers}
    else:
        rates = {"learning_rate": optimizer.learning_rate}
    return {name: float(tf.convert_to_tensor(rate)) for name, rate in rates.items()}


def hparams_summary(hparams: Mapping[str, Any], wall_time: float) -> bytes:
    """Returns the serialized summary for TensorBoard's plugin of hyperparameters.

    Args:
        hparams: name -> value.
        wall_time: when the run began, in seconds since 1970.
    """
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # takes half a second

    values = {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in hparams.items()}
    return hparams_pb(values, start_time_secs=wall_time).SerializeToString()
