"""What the curves of TensorBoard are called, what they show, and what TensorBoard says about them."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

DESCRIPTIONS = {
    "batch_steps_per_second": "Batches per second, since the point before; time of validation left out.",
    "throughput/samples_per_second": "Samples that all replicas trained on per second, since the point before; time of validation "
    "left out, time of checkpoints not.",
    "throughput/samples_per_second_per_replica": "The same for each replica.",
    "time/step_median_ms": "Milliseconds from the begin to the end of a batch: median of the batches since the point before.",
    "time/step_p95_ms": "The same, 95th percentile.",
    "time/data_wait_share": "Share of the batches' time in which the chief waited for data; from a sample of them.",
    "checkpoint/blocked_seconds": "Seconds that training stood still for checkpoints, since the point before.",
    "checkpoint/write_seconds": "Seconds that files took to be written, beside training mostly; of those finished since the point "
    "before.",
    "checkpoint/write_megabytes_per_second": "Speed of these writes; 0 where none was finished.",
    "checkpoint/interval_seconds": "Seconds between checkpoints, as save_freq='auto' has chosen them.",
    "ranks/step_spread_ms": "How much longer the slowest rank takes than the fastest, in median, from the begin of a batch until "
    "its gradients are there and it waits for the others.",
    "ranks/slowest": "The rank that takes the longest.",
    "run/restarts": "How often this run was started again.",
    "run/goodput": "Share of wall time, since the run was first started, spent on batches that were kept: not in start-up, "
    "validation, checkpoints, between two lives, or on batches that were lost in a kill.",
    "device/model_flops_utilization": "Share of the devices' peak arithmetic that the model's own operations take (MFU): those of "
    "the forward pass, three times.",
    "device/peak_memory_gigabytes": "The most memory that was in use on a device of the chief so far, in GB.",
    "host/memory_gigabytes": "Memory of the host that the chief holds now, in GB.",
    "batch_loss_alone": "Loss of this batch alone; batch_loss is the mean of this epoch's batches so far.",
}


def describe(tag: str) -> str:
    """Returns what TensorBoard shall say about a tag."""
    if tag in DESCRIPTIONS:
        return DESCRIPTIONS[tag]
    kind, _, name = tag.partition("_")
    if kind == "evaluation":
        return f"{name.removesuffix('_vs_iterations')}: of an evaluation outside of fit."
    if name == "learning_rate":
        return "The rate of the next update."
    return f"{name}: " + ("mean of this epoch's batches so far." if kind == "batch" else "of the epoch that ends here.")


def learning_rates(model: keras.Model) -> dict[str, float]:
    """Returns the present rates, named as in Keras; read in half the time of `keras.ops.convert_to_numpy`."""
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
    """Returns the summary that the plugin for hyperparameters reads.

    Args:
        hparams: name -> value.
        wall_time: when the run began, in seconds since 1970.
    """
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # half a second, so not at every start

    values = {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in hparams.items()}
    return hparams_pb(values, start_time_secs=wall_time).SerializeToString()
