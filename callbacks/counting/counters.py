"""Counts the batches, steps, epochs and samples that a model has been trained on.

Keras has no such counters: `batch` in a callback counts planned batches of an epoch, and `optimizer.iterations` counts updates. So
the counters belong to the model. A few operations in its train step count on the device, exactly under any `steps_per_execution`.
An upper bound on the host tells whether a read of the device is needed, so that most batches do not wait for the device.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.counting.custom_loop_counts import CustomLoopCounts
from callbacks.counts import Counts
from callbacks.model.attached import OWN, attach, attached
from callbacks.model.fit_hooks import fit_hooks_of, tensors_of
from callbacks.model.keras_private import iterations_of
from callbacks.model.state_tree import StateTree
from callbacks.ranks import ranks


class Counters:
    """The counters of one model. `counters_of(model)` makes them.

    They count in `fit` and `train_on_batch`, with or without callbacks. In a custom training loop they count the calls of
    `on_train_batch_end`, since the loop may have a step of its own; samples are unknown then.

    Attributes:
        batch_bound: an upper bound of the batch counter, mostly exact, that needs no read of the device.
        unfinished: the counts of the checkpoint whose epoch is to be finished; None after the next batch is trained on.
        data_seeks: whether the data itself starts at the position of the resume; `position` sets it.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._strategy = model.distribute_strategy
        self._optimizers: list[keras.optimizers.Optimizer] = []
        self._device = self._make_device_counters()
        self._offset = [0, 0, 0]  # added to the counts of the device
        self.batch_bound = 0
        self._bound_is_exact = True
        self._epoch = 0
        self._epoch_began_at = Counts()
        self._epoch_ended = False
        self._epoch_was_announced = False
        self._positioned_at = 0
        self._loop: CustomLoopCounts | None = None
        self._executed = False  # since the last batch of a custom training loop
        self.unfinished: Counts | None = None
        self.data_seeks = False
        hooks = fit_hooks_of(model)
        hooks.before_tracing(self._find_optimizers)
        hooks.after_execution(self._raise_bound)
        hooks.around_train_step(self._count)

    def read(self) -> Counts:
        """Reads the counters from the device. This waits for the batches in flight."""
        self._count_custom_loop()
        batch, step, samples = self._read_device()
        self.batch_bound, self._bound_is_exact = batch, True
        return Counts(
            batch=batch,
            step=step,
            epoch=self._epoch + 1,
            samples=samples,
            replicas=self._strategy.num_replicas_in_sync * ranks().size,
            batches_in_epoch=batch - self._epoch_began_at.batch,
            samples_in_epoch=samples - self._epoch_began_at.samples,
            epoch_ended=self._epoch_ended,
        )

    def reached(self, batch: float) -> bool:
        """Returns whether the batch counter has reached `batch`. Reads the device only if that is possible."""
        if self.batch_bound < batch:
            return False
        if not self._bound_is_exact:
            self.read()
        return self.batch_bound >= batch

    def begin_training(self, in_fit: bool) -> None:
        """Starts a training. Call it in `on_train_begin`; repeated calls do nothing.

        Args:
            in_fit: whether `fit` calls the callbacks, and not a custom training loop.
        """
        if in_fit:
            self._count_custom_loop()
            self._loop = None
        elif self._loop is None or self._loop.batches:
            self._count_custom_loop()
            self._find_optimizers()
            self._begin_custom_loop()

    def end_batch(self, caller: object) -> bool:
        """Counts a batch of a custom training loop. Call it first in `on_train_batch_end`.

        Args:
            caller: the callback that calls.

        Returns:
            Whether the batch went through no train step of the model.
        """
        if self._loop is None or self._loop.has_skipped:
            return False
        if self._loop.end_batch(caller):
            self.batch_bound += 1
            self.unfinished = None
            self._loop.is_unseen, self._executed = not self._executed, False
        return self._loop.is_unseen

    def skip_batch(self, skips: bool) -> None:
        """Notes whether the train step skips this batch of a custom training loop."""
        if self._loop:
            self._loop.has_skipped = skips

    @property
    def in_custom_loop(self) -> bool:
        """Whether a custom training loop trains the model."""
        return self._loop is not None

    def begin_epoch(self, epoch: int) -> None:
        """Starts an epoch. Call it in `on_epoch_begin`; repeated calls do nothing.

        Args:
            epoch: the 0-based epoch, as Keras gives it.
        """
        self._epoch, self._epoch_ended, self._epoch_was_announced = epoch, False, True
        self._epoch_began_at = self.begin_of_epoch(epoch)
        if self.unfinished and self.unfinished.epoch != epoch + 1:
            self.unfinished = None

    def begin_of_epoch(self, epoch: int) -> Counts:
        """Returns batch, epoch and samples at the beginning of an epoch that begins now, or that a resume finishes.

        Args:
            epoch: the 0-based epoch, as Keras gives it.
        """
        if self.unfinished and self.unfinished.epoch == epoch + 1:
            return _begin_of_epoch(self.unfinished)
        return replace(self.read(), epoch=epoch + 1)

    def end_epoch(self) -> None:
        """Ends an epoch. Call it in `on_epoch_end`; repeated calls do nothing."""
        self._epoch_ended = self._epoch_was_announced = True

    def resume(self, counts: Counts) -> None:
        """Sets the counters to those of a checkpoint."""
        restored = (counts.batch, counts.step, counts.samples)
        self._offset = [n + offset - now for n, offset, now in zip(restored, self._offset, self._read_device(), strict=True)]
        self.batch_bound, self._bound_is_exact = counts.batch, True
        self._epoch, self._epoch_ended = counts.epoch - 1, counts.epoch_ended
        self._epoch_began_at = _begin_of_epoch(counts)
        self.unfinished, self.data_seeks = None if counts.epoch_ended else counts, False
        if self._loop:
            self._begin_custom_loop()

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leaves the counters as they are, whatever is trained on in this context."""
        before, bound = self._read_device(), (self.batch_bound, self._bound_is_exact, self.unfinished)
        yield
        self._offset = [n + offset - now for n, offset, now in zip(before, self._offset, self._read_device(), strict=True)]
        self.batch_bound, self._bound_is_exact, self.unfinished = bound

    def leave_out(self, batches: int, samples: int) -> None:
        """Counts what was just trained on as outside the epoch in progress."""
        self._epoch_began_at = self._epoch_began_at.later(batches, samples)

    @property
    def batches_done(self) -> int:
        """The batches of this epoch that are trained on already; above 0 only after a resume in the middle of an epoch."""
        return self.unfinished.batches_in_epoch if self.unfinished else 0

    @property
    def epoch_to_begin(self) -> int:
        """The 0-based epoch that the next `fit` begins or finishes."""
        return self._epoch + 1 if self._epoch_ended else self._epoch

    def position(self) -> tuple[int, int]:
        """Returns where the data of this epoch starts. Data that can seek calls it and starts there.

        If the data does not call it, a resume reads and drops the batches that are trained on already.

        Returns:
            The 0-based epoch, and the number of its samples that are trained on already.

        Raises:
            RuntimeError: if an epoch has begun that no callback has counted.
        """
        batch = self._read_device()[0]
        if batch != self._positioned_at and not self._epoch_was_announced:
            raise RuntimeError(
                "The order of this data depends on the epoch, but no callback counts the epochs. "
                "Add GlobalStepCheckpoint, or any other callback of this package, to the callbacks of fit."
            )
        self._positioned_at, self._epoch_was_announced, self.data_seeks = batch, False, True
        if self.unfinished is None:
            return self._epoch, 0
        return self._epoch, self.unfinished.samples_in_epoch

    def _begin_custom_loop(self) -> None:
        batch, step, _ = self._read_device()
        self._loop = CustomLoopCounts(batch, step, self._read_updates())

    def _count_custom_loop(self) -> None:
        """Adds the batches of a custom training loop that the device has not counted."""
        if self._loop:
            batch, step, _ = self._read_device()
            batches, steps = self._loop.uncounted(batch, step, self._read_updates())
            self._offset = [self._offset[0] + batches, self._offset[1] + steps, self._offset[2]]

    def _read_updates(self) -> list[int]:
        return [int(updates) for updates in self._updates()]

    def _read_device(self) -> list[int]:
        parts = self._strategy.experimental_local_results(self._device)
        counted = [part.value().numpy().tolist() for part in parts]  # `part.numpy()` takes four times as long
        batches, samples, *steps = map(sum, zip(*counted, strict=True))
        samples *= ranks().size  # each rank trains on its own
        return [n + offset for n, offset in zip((batches, max(steps), samples), self._offset, strict=True)]

    def _make_device_counters(self) -> tf.Variable:
        """Makes the counters: batches, samples, steps of each optimizer. Each replica adds its part without communication."""
        with self._strategy.scope():
            return tf.Variable(
                np.zeros(2 + max(len(self._optimizers), 1), "int64"),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name=f"{OWN}counters",
            )

    def _find_optimizers(self) -> None:
        """Makes new counters if the model has other optimizers than before."""
        found = StateTree(self._model).outer_optimizers
        if [id(each) for each in found] != [id(each) for each in self._optimizers]:
            self._offset = self._read_device()
            self._optimizers = found
            self._device = self._make_device_counters()

    def _count(self, train_step: Callable[[Any], Any], data: Any) -> Any:
        """Counts a batch in the graph, in this order: data, read of the updates, train step, count.

        Ops that do not depend on the data run once more when an iterator of unknown length ends; ops that may run in parallel
        with the step wake an extra thread per batch. XLA runs a step as one op, and cannot create variables under control
        dependencies.
        """
        in_turn = tf.control_dependencies if not self._model.jit_compile else lambda tensors: contextlib.nullcontext()
        with in_turn(tensors_of(data)):
            before = self._updates()
        with in_turn([*tensors_of(data), *before]):
            logs = train_step(data)
            steps = [after - earlier for earlier, after in zip(before, self._updates(), strict=True)] or [1]
        with in_turn(tensors_of((logs, steps))):
            first = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group) == 0
            batch, steps = (1, steps) if first else (0, [0] * len(steps))
            self._device.assign_add(tf.stack([batch, batch_size(data), *steps]))
        return logs

    def _updates(self) -> list[tf.Tensor]:
        return [tf.cast(tf.convert_to_tensor(iterations_of(optimizer)), "int64") for optimizer in self._optimizers]

    def _raise_bound(self) -> None:
        if self._loop:
            self._executed = True
            return
        per_execution = self._model.steps_per_execution
        self.batch_bound += per_execution
        self._bound_is_exact &= per_execution == 1
        self.unfinished = None


def counters_of(model: keras.Model) -> Counters:
    """Returns the counters of a model, the same object each time. They start at zero.

    Args:
        model: a model that was made in the scope of its strategy.
    """
    return attached(model, Counters) or attach(model, Counters(model))


def _begin_of_epoch(counts: Counts) -> Counts:
    batch, samples = counts.batch - counts.batches_in_epoch, counts.samples - counts.samples_in_epoch
    return Counts(batch=batch, epoch=counts.epoch, samples=samples)


def batch_size(data: Any) -> tf.Tensor:
    """Returns the number of samples in a batch: the leading dimension of its parts, or 1 if all are scalars.

    If the leading dimensions differ, it is one that varies from batch to batch, else the most frequent one.
    """
    parts = [part for part in keras.tree.flatten(data) if part is not None and tf.TensorShape(part.shape).rank != 0]
    if not parts:
        return tf.constant(1, "int64")
    leading = [part.shape[0] for part in parts]
    part = parts[leading.index(None if None in leading else max(leading, key=leading.count))]
    return part.dense_shape[0] if isinstance(part, tf.SparseTensor) else tf.shape(part, out_type="int64")[0]
