"""What TensorBoard says about each curve."""

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
    """Returns the description of a curve, in Markdown."""
    if tag in DESCRIPTIONS:
        return DESCRIPTIONS[tag]
    kind, _, name = tag.partition("_")
    if name == "learning_rate":
        return "The rate of the next update."
    return f"{name}: " + ("mean of this epoch's batches so far." if kind == "batch" else "of the epoch that ends here.")
