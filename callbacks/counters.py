"""What a model has been trained on: batches, steps, epochs and samples, counted where training happens.

No stock number is right: `batch` in a callback speaks of planned batches, `optimizer.iterations` of updates, and both start
again with each `fit`. So the counters live with the model. A few additions in its train step count on the device what was
really trained on, under any `steps_per_execution`; a bound kept on the host says when a look at them can matter, so that no
batch waits for the device.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from callbacks.ranks import ranks
from callbacks.state_tree import StateTree

_ATTRIBUTE = "_global_step_counters"


@dataclass(frozen=True)
class Counts:
    """One reading of the counters, and where in the epoch it was taken.

    Args:
        batch: global batches trained on since training began, over all restarts.
        step: optimizer updates; where there are several optimizers, of the one that was stepped most.
        epoch: the epoch that the last batch belongs to, 1-based as in Keras.
        samples: examples trained on.
        replicas: devices that share each global batch.
        batches_in_epoch: how many of the batches are of this epoch.
        samples_in_epoch: how many of the samples are of this epoch.
        epoch_ended: whether this epoch's validation and `on_epoch_end` are behind us too.
    """

    batch: int = 0
    step: int = 0
    epoch: int = 1
    samples: int = 0
    replicas: int = 1
    batches_in_epoch: int = 0
    samples_in_epoch: int = 0
    epoch_ended: bool = False

    def to_json(self) -> dict:
        """The counts as plain numbers."""
        return asdict(self)


@dataclass
class Saving:
    """What checkpoints have cost so far, in this process.

    Args:
        blocked: seconds that training stood still.
        seconds: seconds that the files took to be written, beside training mostly.
        size: bytes of them.
    """

    blocked: float = 0.0
    seconds: float = 0.0
    size: int = 0


@dataclass
class _Rest:
    """The rest of an epoch that an earlier process began: what is already done in it, and what its metrics stood at."""

    counts: Counts
    restore_metrics: Callable[[], None]
    logs: dict[str, float]
    executions_to_skip: int | None = None  # known at the first execution
    data_seeks: bool = False


class Counters:
    """The counters of one model. `counters_of(model)` makes them; nothing else does.

    They count by wrapping the model's train step (on the device) and train function (on the host), for `fit` and
    `train_on_batch` alike, with any number of callbacks, or none, looking on.

    Attributes:
        batch_bound: the batch counter without a look at the device: it is at most this, and mostly exactly this.
        batches_per_epoch: for whoever knows it to say.
        logs: the last that Keras reported.
        saving: what checkpoints have cost.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._strategy = model.distribute_strategy
        self._optimizers: list[keras.optimizers.Optimizer] = []
        self._device = self._make_device_counters()
        self._offset = [0, 0, 0]  # what the device counted is added to this
        self.batch_bound = 0
        self._bound_is_exact = True
        self._epoch = 0
        self._epoch_began_at = Counts()
        self._epoch_ended = False
        self._epoch_was_announced = False
        self._positioned_at = 0
        self._rest: _Rest | None = None
        self._fit = None
        self._before_first_batch: list[tuple[Callable[[], None], bool]] = []
        self._before_save: list[Callable[[], None]] = []
        self.saving = Saving()
        self.batches_per_epoch: int | None = None
        self.logs: dict[str, float] = {}
        self._wrap()

    def read(self) -> Counts:
        """Reads the counters from the device (waits for the batches under way)."""
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
        """Whether that many batches were trained on. Reads the device only where the answer may be yes."""
        if self.batch_bound < batch:
            return False
        if not self._bound_is_exact:
            self.read()
        return self.batch_bound >= batch

    def begin_epoch(self, epoch: int) -> None:
        """To be called in `on_epoch_begin`; more than once does no harm.

        Args:
            epoch: 0-based, as Keras gives it.
        """
        self._epoch, self._epoch_ended, self._epoch_was_announced = epoch, False, True
        if self._rest and self._rest.counts.epoch == epoch + 1:
            done = self._rest.counts
            self._epoch_began_at = Counts(batch=done.batch - done.batches_in_epoch, samples=done.samples - done.samples_in_epoch)
        else:
            self._rest = None
            self._epoch_began_at = self.read()

    def end_epoch(self) -> None:
        """To be called in `on_epoch_end`, after validation; more than once does no harm."""
        self._epoch_ended = self._epoch_was_announced = True

    def resume(self, counts: Counts, logs: dict[str, float], restore_metrics: Callable[[], None] = lambda: None) -> None:
        """Sets the counters to those of a checkpoint; the next `fit` finishes the epoch that it stands in.

        Args:
            counts: what the checkpoint was trained on.
            logs: the last logs that Keras reported.
            restore_metrics: gives the model's metrics the values that they had then; called when `fit` has reset them.
        """
        restored = (counts.batch, counts.step, counts.samples)
        self._offset = [n + offset - now for n, offset, now in zip(restored, self._offset, self._read_device(), strict=True)]
        self.batch_bound, self._bound_is_exact = counts.batch, True
        self._epoch, self._epoch_ended = counts.epoch - 1, counts.epoch_ended
        self._epoch_began_at = Counts(
            batch=counts.batch - counts.batches_in_epoch, samples=counts.samples - counts.samples_in_epoch
        )
        self.logs = dict(logs)
        self._rest = None if counts.epoch_ended else _Rest(counts, restore_metrics, logs)

    @property
    def epoch_to_begin(self) -> int:
        """The 0-based epoch that the next `fit` has to begin (or to finish)."""
        return self._epoch + 1 if self._epoch_ended else self._epoch

    def position(self) -> tuple[int, int]:
        """Where the data of the epoch that begins has to start, for data that can seek.

        Returns:
            The 0-based epoch, and how many of its samples were already trained on. Whoever asks promises to start there;
            otherwise the train function reads and drops the batches that are done.

        Raises:
            RuntimeError: if training goes on into another epoch and no callback has counted it.
        """
        batch = self._read_device()[0]
        if batch != self._positioned_at and not self._epoch_was_announced:
            raise RuntimeError(
                "Data whose order follows the epochs needs somebody to count them. "
                "Add GlobalStepCheckpoint, or any other callback of this package, to the callbacks of fit."
            )
        self._positioned_at, self._epoch_was_announced = batch, False
        if self._rest is None:
            return self._epoch, 0
        self._rest.data_seeks = True
        return self._epoch, self._rest.counts.samples_in_epoch

    def before_first_batch(self, act: Callable[[], None], build: bool = True) -> None:
        """Registers a function to call just before the first batch of the `fit` under way; to be called in `on_train_begin`.

        Args:
            act: the function.
            build: whether it needs the variables that the first batch would make, of metrics and of layers.
        """
        self._forget_other_fits()
        self._before_first_batch.append((act, build))

    def before_save(self, act: Callable[[], None]) -> None:
        """Has something done in the `fit` under way just before each checkpoint, by whoever stands later in the list too.

        Args:
            act: called without arguments, on every rank. To be registered in `on_train_begin`.
        """
        self._forget_other_fits()
        self._before_save.append(act)

    def about_to_save(self) -> None:
        """To be called before a checkpoint is taken."""
        for act in self._before_save:
            act()

    def _forget_other_fits(self) -> None:
        if self._fit is not self._model.history:  # Keras makes a new one for each fit
            self._fit = self._model.history
            self._before_first_batch, self._before_save = [], []

    def _read_device(self) -> list[int]:
        parts = self._strategy.experimental_local_results(self._device)
        counted = [part.value().numpy().tolist() for part in parts]  # `part.numpy()` takes four times as long
        batches, samples, *steps = map(sum, zip(*counted, strict=True))
        samples *= ranks().size  # each rank has its own
        return [n + offset for n, offset in zip((batches, max(steps), samples), self._offset, strict=True)]

    def _make_device_counters(self) -> tf.Variable:
        """Batches, samples, and the steps of each optimizer; each replica adds its part, so counting needs no communication."""
        with self._strategy.scope():
            return tf.Variable(
                np.zeros(2 + max(len(self._optimizers), 1), "int64"),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name="global_step_counters",
            )

    def _find_optimizers(self) -> None:
        """Counts the steps of each optimizer that the model has now."""
        found = StateTree(self._model).outer_optimizers
        if [id(each) for each in found] != [id(each) for each in self._optimizers]:
            self._offset = self._read_device()
            self._optimizers = found
            self._device = self._make_device_counters()

    def _wrap(self) -> None:
        model, train_step, make_train_function = self._model, self._model.train_step, self._model.make_train_function
        self._train_step = train_step

        def counted_train_step(data):
            # Counting waits for the data and the step for counting, for two reasons. What does not depend on the data, say
            # `iterations += 1`, TensorFlow runs once more when an iterator of unknown length has ended. And what could run
            # beside the step wakes up another thread for it, in every batch. XLA runs a step as one operation, and could not
            # create variables in there.
            in_turn = tf.control_dependencies if not model.jit_compile else lambda tensors: contextlib.nullcontext()
            with in_turn(tensors_of(data)):
                before = self._updates()
            with in_turn([*tensors_of(data), *before]):
                logs = train_step(data)
                steps = [after - earlier for earlier, after in zip(before, self._updates(), strict=True)] or [1]
            with in_turn(tensors_of((logs, steps))):
                first = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group) == 0
                batch, steps = (1, steps) if first else (0, [0] * len(steps))
                self._device.assign_add(tf.stack([batch, _batch_size(data), *steps]))
            return logs

        def make_counted_train_function(force=False):
            if model.train_function is None or force:
                self._find_optimizers()
                make_train_function(force=True)
                model.train_function = self._counted(model.train_function)
            return model.train_function

        model.train_step = tf.autograph.experimental.do_not_convert(counted_train_step)
        model.make_train_function = make_counted_train_function
        if model.train_function is not None:  # it was made before and does not count
            model.make_train_function(force=True)

    def _updates(self) -> list[tf.Tensor]:
        return [tf.cast(tf.convert_to_tensor(optimizer.iterations), "int64") for optimizer in self._optimizers]

    def _counted(self, train_function):
        per_execution = self._model.steps_per_execution

        def counted_train_function(iterator):
            if self._before_first_batch:
                self._act_before_first_batch(iterator)
            if self._rest is not None:
                if self._rest.executions_to_skip is None:
                    self._enter(self._rest, iterator)
                if self._rest.executions_to_skip:
                    self._rest.executions_to_skip -= 1
                    return self._rest.logs
                self._rest = None
            logs = train_function(iterator)
            self.batch_bound += per_execution
            self._bound_is_exact &= per_execution == 1
            return logs

        return counted_train_function

    def _enter(self, rest: _Rest, iterator: Any) -> None:
        """Makes the first execution of a rest: metrics as they stood, data past what is done, executions counted off."""
        per_execution = self._model.steps_per_execution
        done, planned = rest.counts.batches_in_epoch, self.batches_per_epoch
        if planned is None:
            rest.executions_to_skip = done // per_execution
        else:
            rest.executions_to_skip = -(-planned // per_execution) - -(-max(planned - done, 0) // per_execution)
        if not rest.data_seeks:
            for _ in range(done):
                next(iterator)
        self._build(iterator)
        rest.restore_metrics()
        with self._strategy.scope():
            restored = metrics_results(self._model)
        if restored.keys() == rest.logs.keys():
            rest.logs = restored

    def _act_before_first_batch(self, iterator):
        acts, self._before_first_batch = self._before_first_batch, []
        if any(build for _, build in acts):
            self._build(iterator)
        for act, _ in acts:
            act()

    def _build(self, iterator):
        """Makes the variables that the first batch would make: without training on it, and without drawing from the data."""
        model, spec = self._model, iterator.element_spec
        if type(model).train_step is keras.Model.train_step:
            if self._strategy.num_replicas_in_sync == 1:  # with several, `fit` has built them already
                with self._strategy.scope():
                    model._symbolic_build(data_batch=tf.nest.map_structure(_symbolic, spec))
        elif not StateTree(model).is_built or not all(getattr(metric, "built", True) for metric in model.metrics):
            # Not the train step that counts: initial values must not depend on the data that counting waits for.
            step = tf.function(lambda data: self._strategy.run(self._train_step, args=(data,)), autograph=False)
            step.get_concrete_function(spec)


def counters_of(model: keras.Model) -> Counters:
    """The counters of a model, zero where it has none yet.

    Args:
        model: a model, made under the scope of the strategy that it is trained with.

    Returns:
        The same object each time.
    """
    if not hasattr(model, _ATTRIBUTE):
        setattr(model, _ATTRIBUTE, Counters(model))
    return getattr(model, _ATTRIBUTE)


def metrics_results(model: keras.Model) -> dict[str, Any]:
    """Returns the running metrics of a model as its logs name them: scalars as numbers, others as arrays."""

    def flat(results):
        for name, result in results.items():
            if isinstance(result, dict):
                yield from flat(result)
            else:
                array = keras.ops.convert_to_numpy(result)
                yield name, float(array) if array.ndim == 0 else array

    return dict(sorted(flat(model.get_metrics_result())))


def tensors_of(data: Any) -> list[tf.Tensor]:
    """The tensors of any structure, those of ragged and sparse ones too."""
    return [leaf for leaf in tf.nest.flatten(data, expand_composites=True) if isinstance(leaf, tf.Tensor)]


def _batch_size(data: Any) -> tf.Tensor:
    first = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
    return first.dense_shape[0] if isinstance(first, tf.SparseTensor) else tf.shape(first, out_type="int64")[0]


def _symbolic(spec):
    return keras.KerasTensor(tuple(spec.shape), spec.dtype.name)
