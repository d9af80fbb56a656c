"""Statistics of the batches between two points of the curves. They need no Keras, no files and no ranks, only a clock."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from callbacks.counting.batch_times import BatchTimes
from callbacks.counting.save_costs import SaveCosts
from callbacks.counts import Counts


class StepStatistics:
    """Collects how long batches, waits for data and checkpoints take from one point of the curves to the next.

    Args:
        clock: returns seconds since any fixed moment.

    Example:

    >>> now = 0.0
    >>> statistics = StepStatistics(clock=lambda: now)
    >>> statistics.begin_batch(bound=0)
    >>> now = 0.25
    >>> statistics.end_batch(bound=1)
    True
    >>> statistics.step_times()
    {'time/step_median_ms': 250.0, 'time/step_p95_ms': 250.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._kept_before, self._times = 0.0, BatchTimes()
        self._has_trained = False
        self._batch_began: float | None = None
        self._bound, self._beside_write = 0, False
        self.begin_window(Counts(), SaveCosts())

    @property
    def kept_seconds(self) -> float:
        """The seconds of training on the batches that the model has, over all restarts, as in the report."""
        return self._kept_before + self._times.training

    @kept_seconds.setter
    def kept_seconds(self, seconds: float) -> None:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"kept_seconds is {seconds}")
        self._kept_before, self._times = seconds, BatchTimes()

    def begin_window(self, counts: Counts, costs: SaveCosts) -> None:
        """Starts a new window.

        Args:
            counts: the current counters.
            costs: the current costs of checkpoints.
        """
        self._counts, self._costs = counts, dataclasses.replace(costs)
        self._began = self._clock()
        self._validated_for = self._test_began = 0.0
        self._durations: list[float] = []  # seconds of each batch
        self._alone: list[float] = []  # seconds of each batch until this rank began to wait for the others
        self._waits: dict[int, float] = {}  # index in the list of durations -> seconds waiting for data
        self._firsts: set[int] = set()  # indices of the first batches of epochs

    def forget_batch(self) -> None:
        """Discards a batch that has not ended."""
        self._batch_began = None

    def begin_batch(self, bound: int, begins_epoch: bool = False, beside_write: bool = False) -> None:
        """Notes the start of a batch, or of an execution of several.

        Args:
            bound: an upper bound of the batch counter.
            begins_epoch: whether this is the first batch of an epoch.
            beside_write: whether a checkpoint is being written.
        """
        self._bound, self._beside_write = bound, beside_write
        if begins_epoch:
            self._firsts.add(len(self._durations))
        self._batch_began = self._clock()

    def note_data(self) -> None:
        """Notes that the data of the batch have arrived. Call it from any thread, for a sample of batches."""
        if self._batch_began is not None:
            self._waits[len(self._durations)] = self._clock() - self._batch_began

    def end_batch(self, bound: int, gradients_ready_at: float | None = None) -> bool:
        """Notes the end of a batch. A second call for the same batch does nothing.

        Args:
            bound: an upper bound of the batch counter.
            gradients_ready_at: when this rank began to wait for the others, by the same clock; None if ranks do not wait.

        Returns:
            Whether the batch was trained on: False for a second call, and for a batch that a resume skips.
        """
        if self._batch_began is None:
            return False
        began, self._batch_began = self._batch_began, None
        seconds, trained = self._clock() - began, bound - self._bound
        if not trained:
            return False
        index = len(self._durations)
        if self._has_trained:  # the first batch of the process is traced, and counts as start-up
            begins_epoch = index in self._firsts
            self._times.add(trained, seconds, self._waits.get(index), begins_epoch=begins_epoch, beside_write=self._beside_write)
        self._has_trained = True
        self._durations.append(seconds / trained)
        self._alone.append(seconds if gradients_ready_at is None else gradients_ready_at - began)
        return True

    def begin_validation(self) -> None:
        """Notes the start of a validation."""
        self._test_began = self._clock()

    def end_validation(self) -> None:
        """Notes the end of a validation, whose time does not count for the throughput."""
        self._validated_for += self._clock() - self._test_began

    def throughput(self, counts: Counts) -> dict[str, float]:
        """Returns samples and batches per second.

        Args:
            counts: the current counters.
        """
        seconds = self._clock() - self._began - self._validated_for
        speed = ratio(counts.samples - self._counts.samples, seconds)
        return {
            "throughput/samples_per_second": speed,
            "throughput/samples_per_second_per_replica": speed / counts.replicas,
            "batch_steps_per_second": ratio(counts.batch - self._counts.batch, seconds),
        }

    def step_times(self) -> dict[str, float]:
        """Returns the median and the 95th percentile of the duration of a batch, in milliseconds."""
        return {f"time/step_{name}_ms": 1e3 * percentile(self._durations, n) for name, n in (("median", 50), ("p95", 95))}

    def data_wait_share(self) -> float:
        """Returns the share of the batches' time in which training waited for data, from the sampled batches.

        The first batch of an epoch is always sampled, and often waits longer, so it stands only for itself.
        """
        firsts = [i for i in self._firsts if i in self._waits]
        others = [i for i in self._waits if i not in self._firsts]
        share = ratio(sum(self._waits[i] for i in others), sum(self._durations[i] for i in others))
        of_firsts = sum(self._durations[i] for i in firsts)
        total = sum(self._durations) if others else of_firsts
        return ratio(sum(self._waits[i] for i in firsts) + share * (total - of_firsts), total)

    def own_median(self) -> float:
        """Returns the median seconds from the start of a batch until this rank waits for the others."""
        return percentile(self._alone, 50)

    def checkpoints(self, costs: SaveCosts) -> dict[str, float]:
        """Returns the costs of checkpoints in this window.

        Args:
            costs: the current costs of checkpoints.
        """
        seconds = costs.seconds - self._costs.seconds
        chosen = {} if costs.interval is None else {"checkpoint/interval_seconds": costs.interval}
        return chosen | {
            "checkpoint/blocked_seconds": costs.blocked - self._costs.blocked,
            "checkpoint/write_seconds": seconds,
            "checkpoint/write_megabytes_per_second": ratio((costs.size - self._costs.size) / 1e6, seconds),
        }


def percentile(values: Sequence[float], n: int) -> float:
    """Returns a percentile by the nearest value. For so few values, numpy's function takes ten times as long."""
    return sorted(values)[len(values) * n // 100] if values else 0.0


def ratio(part: float, whole: float) -> float:
    """Returns part / whole, or 0 if the whole is 0."""
    return part / whole if whole > 0 else 0.0
