"""Learning rates for large global batches: linear scaling and warm-up.

Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", sections 2.1 and 2.2, https://arxiv.org/abs/1706.02677.
"""

import keras


def scaled_learning_rate(learning_rate: float, global_batch_size: int, base_batch_size: int | None) -> tuple[float, float]:
    """Scales a learning rate linearly to the global batch.

    Args:
        learning_rate: the rate for a batch of `base_batch_size`.
        global_batch_size: samples in one update.
        base_batch_size: None if the rate is for the global batch; the rate is not scaled then.

    Returns:
        The rate at which a warm-up starts, and the peak that it reaches. The start is the rate before scaling, or the peak if
        that is lower; 0 if the rate is not scaled.
    """
    if base_batch_size is None:
        return 0.0, learning_rate
    peak = learning_rate * (global_batch_size / base_batch_size)
    return min(learning_rate, peak), peak


def constant_learning_rate(
    start: float, peak: float, *, warmup_batches: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns a constant learning rate after a linear warm-up.

    Args:
        start: the rate at the first batch of the warm-up.
        peak: the rate after the warm-up.
        warmup_batches: 0 for no warm-up.

    Returns:
        A number or one of Keras's schedules, so that saved models load without this repository.
    """
    if not warmup_batches:
        return peak
    return keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=start, decay_steps=warmup_batches, end_learning_rate=peak, power=1.0
    )


def cosine_learning_rate(
    start: float, peak: float, *, warmup_batches: int, batches: int, floor: float = 0.0
) -> keras.optimizers.schedules.CosineDecay:
    """Returns a schedule with a linear warm-up, followed by a cosine decay until the last batch.

    The schedule counts batches, also with gradient accumulation. It changes if a run resumes with another number of epochs.

    Args:
        start, peak, warmup_batches: as in `constant_learning_rate`.
        batches: the number of batches in the whole training.
        floor: the final rate, as a fraction of the peak.

    Returns:
        One of Keras's schedules, so that saved models load without this repository.

    Source: Loshchilov and Hutter 2016, "SGDR", https://arxiv.org/abs/1608.03983.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=start if warmup_batches else peak,
        decay_steps=max(1, batches - warmup_batches),
        alpha=floor,
        warmup_target=peak if warmup_batches else None,
        warmup_steps=warmup_batches,
    )
