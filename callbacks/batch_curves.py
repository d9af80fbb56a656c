"""What a point of the curves shows of the batches since the point before."""

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
    """The curves of one training. To be made on every rank, before the first batch.

    Args:
        model: in training.
        statistics: the times of its batches.
        costs: what its checkpoints have cost.
        data_sample: one batch in how many tells how long it waited for data.
        peak_tflops: of a device; None for that of a table.

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

    def values(self, counts: Counts, ends_batch: bool) -> dict[str, float]:
        """Returns curve -> value, on the chief.

        Args:
            counts: the counters now.
            ends_batch: whether the point stands at the end of a batch, and not of an epoch.
        """
        values = self._statistics.throughput(counts) | self._statistics.step_times()
        if ends_batch and self.loss.alone is not None:
            values["batch_loss_alone"] = self.loss.alone
        if self._data_arrival:
            values["time/data_wait_share"] = self._statistics.data_wait_share()
        values |= self._usage.values(values["throughput/samples_per_second_per_replica"])
        return values | self._statistics.checkpoints(self._costs)

    def compare_ranks(self) -> dict[str, float]:
        """Returns the curves of the ranks, and names the one that the others wait for. All ranks have to call it."""
        if ranks().size == 1:
            return {}
        told = ranks().gather([self._statistics.own_median(), socket.gethostname()])
        seconds = [each for each, _ in told]
        named = self._slowest.note(seconds)
        if named is not None and ranks().is_chief:
            warnings.warn(verdict(seconds, named, told[named][1]), stacklevel=2)
        slowest = max(seconds)
        return {"ranks/step_spread_ms": 1e3 * (slowest - min(seconds)), "ranks/slowest": seconds.index(slowest)}
