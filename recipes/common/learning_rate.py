"""The learning rate of a large global batch: linear scaling, and the warm-up that makes it work.

Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", sections 2.1 and 2.2, https://arxiv.org/abs/1706.02677.
"""

import keras


def scaled_learning_rate(learning_rate: float, global_batch_size: int, base_batch_size: int | None) -> tuple[float, float]:
    """Scales a rate linearly to the global batch.

    Args:
        learning_rate: chosen for a batch of `base_batch_size`.
        global_batch_size: samples of one update.
        base_batch_size: None if the rate is for the global batch itself; nothing is scaled then.

    Returns:
        The rate at which a warm-up starts, and the peak that it reaches. It starts at the rate before scaling, or at the peak if
        that is lower; at 0 if nothing is scaled.
    """
    if base_batch_size is None:
        return 0.0, learning_rate
    peak = learning_rate * (global_batch_size / base_batch_size)
    return min(learning_rate, peak), peak


def constant_learning_rate(
    start: float, peak: float, *, warmup_batches: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The peak, reached in equal steps from batch to batch.

    Args:
        start: the rate of the first batch of a warm-up.
        peak: the rate after it.
        warmup_batches: 0 for no warm-up.

    Returns:
        A number, or a schedule of Keras's own, so that whole models load without this repository.
    """
    if not warmup_batches:
        return peak
    return keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=start, decay_steps=warmup_batches, end_learning_rate=peak, power=1.0
    )


def cosine_learning_rate(
    start: float, peak: float, *, warmup_batches: int, batches: int, floor: float = 0.0
) -> keras.optimizers.schedules.CosineDecay:
    """The peak, reached as in `constant_learning_rate`, then lowered along half a cosine until the last batch.

    The position on the curve is the number of batches, also where gradients are accumulated. A run that resumes with another number
    of epochs is on another curve.

    Args:
        start, peak, warmup_batches: as in `constant_learning_rate`.
        batches: of the whole training.
        floor: where the curve ends, as a fraction of the peak.

    Returns:
        A schedule of Keras's own, so that whole models load without this repository.

    Source: Loshchilov and Hutter 2016, "SGDR", https://arxiv.org/abs/1608.03983.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=start if warmup_batches else peak,
        decay_steps=max(1, batches - warmup_batches),
        alpha=floor,
        warmup_target=peak if warmup_batches else None,
        warmup_steps=warmup_batches,
    )
