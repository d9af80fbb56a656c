"""Computes the values of a point in the curves, from the batches since the previous point."""

import socket
import warnings

import keras

from callbacks.batch_loss import BatchLoss
from callbacks.counts import Counts
from callbacks.data_arrival import data_arrival_of
from callbacks.device_usage import DeviceUsage
from callbacks.ranks import ranks
from callbacks.save_costs import SaveCosts
from callbacks.slowest_rank import SlowestRank, verdict
from callbacks.step_statistics import StepStatistics


class BatchCurves:
    """The curves of one training. Make it on every rank, before the first batch.

    Args:
        model: the model in training.
        statistics: the durations of its batches.
        costs: the costs of its checkpoints.
        data_sample: the wait for data is measured for one batch in `data_sample`.
        peak_tflops: the peak of a device; None looks it up.

    Attributes:
        loss: the loss of single batches.
    """

    def __init__(
        self, model: keras.Model, statistics: StepStatistics, costs: SaveCosts, data_sample: int, peak_tflops: float | None
    ):
        self._statistics, self._costs = statistics, costs
        self._data_arrival = data_arrival_of(model, data_sample)
        if self._data_arrival:
            self._data_arrival.acts["curves"] = statistics.note_data
        self._usage, self._slowest, self.loss = DeviceUsage(model, peak_tflops), SlowestRank(), BatchLoss()

    def begin_epoch(self, counts: Counts) -> None:
        """Notes that an epoch begins, or is resumed.

        Args:
            counts: the current counters.
        """
        self.loss.begin_epoch(counts.batch - counts.batches_in_epoch)
        if self._data_arrival:
            self._data_arrival.begin_epoch()

    def values(self, counts: Counts, ends_batch: bool) -> dict[str, float]:
        """Returns curve -> value, on the chief.

        Args:
            counts: the current counters.
            ends_batch: whether the point is at the end of a batch, and not of an epoch.
        """
        values = self._statistics.throughput(counts) | self._statistics.step_times()
        if ends_batch and self.loss.alone is not None:
            values["batch_loss_alone"] = self.loss.alone
        if self._data_arrival:
            values["time/data_wait_share"] = self._statistics.data_wait_share()
        values |= self._usage.values(values["throughput/samples_per_second_per_replica"])
        return values | self._statistics.checkpoints(self._costs)

    def compare_ranks(self) -> dict[str, float]:
        """Returns the curves that compare ranks, and warns of a rank that the others wait for. All ranks must call it."""
        if ranks().size == 1:
            return {}
        measured = ranks().gather([self._statistics.own_median(), socket.gethostname()])
        seconds = [each for each, _ in measured]
        named = self._slowest.note(seconds)
        if named is not None and ranks().is_chief:
            warnings.warn(verdict(seconds, named, measured[named][1]), stacklevel=2)
        slowest = max(seconds)
        return {"ranks/step_spread_ms": 1e3 * (slowest - min(seconds)), "ranks/slowest": seconds.index(slowest)}
