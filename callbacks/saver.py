"""Writes snapshots to checkpoints, in a thread or synchronously."""

import time
import warnings

import keras

from callbacks import files, state
from callbacks.checkpoint_directory import CheckpointDirectory
from callbacks.counters import counters_of
from callbacks.device_memory import DeviceMemory
from callbacks.disk_room import DiskRoom, state_size
from callbacks.finite import first_not_finite
from callbacks.host_memory import HostMemory
from callbacks.keras_private import global_seed_generator
from callbacks.pruner import Pruner
from callbacks.ranks import ranks
from callbacks.save_costs import save_costs_of
from callbacks.snapshot import Snapshot, SnapshotPlan
from callbacks.template import Template
from callbacks.writer import Writer


class Saver:
    """Writes the checkpoints of one training.

    Args:
        model: the model in training.
        template: the names of the checkpoints. The suffix decides what a snapshot contains.
        writer: runs the writes, in a thread or synchronously.
        directory: the directory of the checkpoints, claimed by this run.
        pruner: deletes old checkpoints.
        disk_room: warns if the disk has too little room.
        device_memory: finds devices without room for copies.
        verbose: whether to print a line for each checkpoint.
    """

    def __init__(
        self,
        model: keras.Model,
        template: Template,
        writer: Writer,
        directory: CheckpointDirectory,
        pruner: Pruner,
        disk_room: DiskRoom,
        device_memory: DeviceMemory,
        verbose: int,
    ):
        self._model, self._is_archive, self._writer = model, template.suffix == ".keras", writer
        self._directory, self._pruner, self._disk_room = directory, pruner, disk_room
        self._device_memory, self._verbose = device_memory, verbose
        self._memory = HostMemory()
        self._counters, self._costs = counters_of(model), save_costs_of(model)
        self._plan: SnapshotPlan | None = None
        self._seeds: keras.random.SeedGenerator | None = None
        self._is_prepared = self._has_warned_of_wait = self._has_warned_of_nan = self._has_warned_of_change = False

    def plan(self) -> SnapshotPlan:
        """Returns the current plan of a snapshot of the model."""
        if self._plan is None or not self._plan.is_current():
            self._seeds = self._seeds or global_seed_generator()
            earlier, self._plan = self._plan, SnapshotPlan(self._model, self._is_archive, self._seeds)
            if earlier is not None:
                self._warn_of_change(earlier, self._plan)
        return self._plan

    def _warn_of_change(self, earlier: SnapshotPlan, now: SnapshotPlan) -> None:
        """Warns once if the model has changed, since a restart may create another model than the saved one."""
        changed = [name for name, of in now.layer_variables.items() if earlier.layer_variables.get(name) != of]
        if changed and not self._has_warned_of_change and ranks().is_chief:
            self._has_warned_of_change = True
            warnings.warn(
                f"The model has other variables than when training began, first {now.layer_variables[changed[0]][2]}. A restart "
                "can resume only if these exist by its first batch: create them before fit, or in on_epoch_begin if missing.",
                stacklevel=2,
            )

    def prepare(self) -> None:
        """Prepares the first save. Call it after each batch; only the first call, when all variables exist, has an effect."""
        if self._is_prepared:
            return
        self._is_prepared = True
        plan = self.plan()
        plan.read_keras_part()
        plan.members()  # fails now, and not hours later, if Keras cannot serialize the model
        if ranks().is_chief:
            self._disk_room.warn(state_size(self._model))
        if self._writer.background and ranks().is_chief:
            self._writer.prepare(lambda: self._memory.provide(plan.memory))

    def raise_failure(self) -> None:
        """Raises the error of a checkpoint that could not be written.

        Raises:
            CheckpointWriteError: if there is one.
        """
        self._writer.raise_failure()

    def make_room(self) -> None:
        """Waits until the writer has room for another snapshot.

        Raises:
            CheckpointWriteError: if an earlier checkpoint could not be written.
        """
        self._memory.want()
        self._writer.make_room(f"The save of batch {self._counters.read().batch}")

    def free_memory(self) -> None:
        """Frees the memory of snapshots. No save may be in flight."""
        self._memory, self._plan, self._seeds = HostMemory(), None, None

    def submit(self, snapshot: Snapshot, path: str) -> None:
        """Starts the write of a snapshot. Call it on the chief, after `make_room`.

        Args:
            snapshot: the state of training.
            path: the checkpoint to create or replace.

        Raises:
            CheckpointWriteError: if the write is synchronous and fails.
        """
        if self._writer.background and (full := self._device_memory.full(snapshot.tensors())):
            self._fetch_at_once(snapshot, full)
        self._costs.is_writing = True
        self._writer.submit(path, lambda: self._write(snapshot, path))

    def _fetch_at_once(self, snapshot: Snapshot, full: list[str]) -> None:
        """Copies the values now, since a device has no room for the copies that TensorFlow would make in the next batch."""
        began = time.monotonic()
        self._writer.prepare(lambda: snapshot.fetch(self._memory)).result()  # in the thread that may still be allocating the memory
        if not self._has_warned_of_wait:
            self._has_warned_of_wait = True
            warnings.warn(
                f"Training waited {time.monotonic() - began:.2f} s while {snapshot.size / 1e6:.3g} MB were copied from "
                f"{', '.join(full)}, which has no room for a second copy of the training state. It will wait at each save. "
                "A smaller batch leaves more room.",
                stacklevel=2,
            )

    def _check_finite(self, snapshot: Snapshot, path: str) -> None:
        """Writes to the header whether all values are finite, and warns once if they are not."""
        not_finite = first_not_finite(snapshot)
        snapshot.header["finite"] = not_finite is None
        if not_finite is not None and not self._has_warned_of_nan:
            self._has_warned_of_nan = True
            warnings.warn(
                f"{path} contains NaN or infinite values, first in {not_finite}. A resume skips such checkpoints and starts from "
                "the newest finite one, which is never deleted.",
                stacklevel=2,
            )

    def _write(self, snapshot: Snapshot, path: str) -> int:
        try:
            return self._write_and_prune(snapshot, path)
        finally:
            self._costs.is_writing = False

    def _write_and_prune(self, snapshot: Snapshot, path: str) -> int:
        began = time.monotonic()
        counts = snapshot.counts
        if self._writer.background:
            snapshot.fetch(self._memory)
        self._directory.check()
        self._directory.check_name(path)
        self._directory.make_parents(path)
        self._check_finite(snapshot, path)
        trailer = files.Trailer(counts.batch, counts.step, counts.epoch, counts.samples)
        size = files.commit(path, trailer, lambda output: state.write(snapshot, output), self._directory.check)
        self._costs.seconds += time.monotonic() - began
        self._costs.size += size
        self._costs.newest = (counts.batch, path)
        if self._verbose:
            print(f"\nBatch {counts.batch}: saved {path} ({size / 1e6:.1f} MB in {time.monotonic() - began:.2f} s)", flush=True)
        self._pruner.prune(path, counts.batch, snapshot.header["metrics"], snapshot.header["finite"])
        if self._writer.background:
            snapshot.release(self._memory)
        return size
