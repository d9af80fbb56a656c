"""The position of training in its data, and how a resume returns to it.

`fit` draws its batches from iterators: a new one for each epoch, or with `steps_per_epoch` one for several epochs. A checkpoint
stores the number of iterators before the current one, and the number of batches drawn from it. A resume creates as many iterators,
so that shuffles reach the same order, and reads and drops the batches that were drawn.
"""

import random
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf

from callbacks.counting.counters import batch_size, counters_of
from callbacks.counting.data_order import DataOrder, Replay, doubts_of_replay, order_of
from callbacks.counting.fit_data import FitData
from callbacks.counting.long_loops import UNNAMED, bounded
from callbacks.counts import Counts
from callbacks.errors import InputError
from callbacks.model.attached import attach, attached
from callbacks.model.fit_hooks import RunningFit, fit_hooks_of, is_of_train_on_batch
from callbacks.ranks import ranks


@dataclass(frozen=True)
class Place:
    """The place of the next batch in the data.

    Args:
        created: the number of iterators before the current one.
        used: the number of these that were read.
        drawn: the number of batches drawn from the current iterator.
        samples: the number of samples in these batches.
        length: the number of batches in an iterator; None if unknown.
        epochs: the number of epochs that have ended on this data.
        seeds: the seeds of the data's random operations.
        random: the state of Python's `random` when the iterator was made, if Keras shuffles with it.
    """

    created: int = 0
    used: int = 0
    drawn: int = 0
    samples: int = 0
    length: int | None = None
    epochs: int = 0
    seeds: list[list[int]] | None = None
    random: list[Any] | None = field(default=None, repr=False)

    @property
    def is_at_end(self) -> bool:
        """Whether the iterator has no more batches, so that none has to be read."""
        return self.length is not None and self.drawn >= self.length

    def before_next_iterator(self) -> "Place":
        """Returns the place before the iterator after the current one, as the next `fit` begins."""
        begun = int(self.drawn > 0)
        random = None if begun else self.random
        return replace(self, created=self.created + begun, used=self.used + begun, drawn=0, samples=0, random=random)

    def to_json(self) -> dict[str, Any]:
        """Returns the place as plain data."""
        return asdict(self)


@dataclass
class _Reading:
    """The iterators that this process has made of some data, for any model.

    Args:
        created: the number of iterators.
        used: the number of iterators that were read.
        first_epoch: the 0-based epoch of the first one.
    """

    created: int = 0
    used: int = 0
    first_epoch: int = 0


_readings: weakref.WeakKeyDictionary[Any, _Reading] = weakref.WeakKeyDictionary()


class DataPosition:
    """The position of one model's training in its data. `data_position_of(model)` makes it.

    Attributes:
        ends_epoch: whether a resume is at the end of the data, so that the epoch has no more batches.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._counters = counters_of(model)
        self._fit_data: Callable[[], FitData | None] = lambda: None
        self._order: DataOrder | None = None
        self._reading = _Reading()
        self._is_used = False  # whether the newest iterator was read
        self._began_at = Counts()  # the counters when the newest iterator was made, minus the dropped batches
        self._random_at_begin: list[Any] | None = None
        self._resume_at: Place | None = None
        self._unread: _Reading | None = None  # of an ended `fit` that resumed at a place and had no batch left to read there
        self._path = UNNAMED  # of the checkpoint, for messages
        self._begun_from: Place | None = None
        self._unseen = 0
        self._will_resume = False
        self.ends_epoch = False
        fit_hooks_of(model).around_execution(self._before_execution)

    def begin(self, fit: RunningFit, will_resume: bool) -> None:
        """Observes the data of a `fit`. Call it in `on_train_begin`; repeated calls do nothing.

        Args:
            fit: the running `fit`.
            will_resume: whether a later process is expected to resume, so that doubts about the order are reported.
        """
        self._will_resume |= will_resume
        if fit.epoch_iterator is None:  # a custom training loop, whose data is unknown
            self._fit_data = lambda: None
            return
        if self._fit and self._fit.epoch_iterator is fit.epoch_iterator:
            return
        self._reading, unread, self._unread = _reading_of(fit.source), self._unread, None
        if self._resume_at is not None and unread is not None:
            self._resume_at = self._resume_at.before_next_iterator() if self._reading is unread else None
        self._fit_data = weakref.ref(FitData(fit.epoch_iterator, self._make_iterator))
        self._order, self._will_resume, self._counters.data_seeks = None, will_resume, False

    def end(self) -> None:
        """Ends a `fit`. Call it in `on_train_end`. The next one begins with a new iterator, unless it resumes too."""
        self._unread = self._reading if self._fit is not None and self._resume_at is not None else None

    def resume(self, place: dict[str, Any] | None, counts: Counts, path: str = UNNAMED) -> None:
        """Makes the next `fit` resume from a place.

        Args:
            place: the place in the checkpoint; None in older files and after a custom training loop.
            counts: the counters of the checkpoint.
            path: the path of the checkpoint, for messages.
        """
        self._path, self._unread = path, None
        if place is None:
            drawn = (0, 0) if counts.epoch_ended else (counts.batches_in_epoch, counts.samples_in_epoch)
            self._resume_at = Place(drawn=drawn[0], samples=drawn[1])
        else:
            self._resume_at = Place(**place)

    def is_of_callback(self, iterator: Any) -> bool:
        """Returns whether an execution is a `train_on_batch` that a callback of the running `fit` calls."""
        return self._fit is not None and is_of_train_on_batch(iterator)

    def leave_out(self, batches: int, samples: int) -> None:
        """Counts what was just trained on as not drawn from the data."""
        self._began_at = self._began_at.later(batches, samples)

    def begin_epoch(self) -> None:
        """Prepares the data of an epoch. Call it before Keras makes the iterator, in `on_epoch_begin`. It may be repeated."""
        place, self._begun_from = self._resume_at if self._resume_at is not self._begun_from else None, self._resume_at
        if self._fit is None:
            return
        if place is not None and self._fit.py_dataset is not None:
            seen = self._epochs(self._counters.read()) if self._reading.created else 0
            again = place.epochs - seen
            for _ in bounded(again, f"repeats the hooks of {again} epochs", self._path):  # they may change the data
                self._fit.py_dataset.on_epoch_begin()
                self._fit.py_dataset.on_epoch_end()
        if self._fit.shuffles_by_python:
            if place is not None and place.random is not None:
                version, state, gauss = place.random
                random.setstate((version, tuple(state), gauss))
            if not (self._fit.continues and self._is_used):
                self._random_at_begin = list(random.getstate())

    def place(self, counts: Counts) -> Place | None:
        """Returns the place of the next batch; None in a custom training loop.

        Args:
            counts: the current counters.
        """
        if self._fit is None or self._order is None:
            return None
        if self._resume_at is not None:  # a callback has restored a checkpoint after the last batch
            return self._resume_at
        data = Place(length=self._fit.length, epochs=self._epochs(counts), seeds=self._order.seeds)
        if self._counters.data_seeks:  # a resume makes one iterator, which starts at the place
            return data if counts.epoch_ended else replace(data, drawn=counts.batches_in_epoch, samples=counts.samples_in_epoch)
        if counts.epoch_ended and not self._fit.continues:
            state = list(random.getstate()) if self._fit.shuffles_by_python else None
            return replace(data, created=self._reading.created, used=self._reading.used, random=state)
        return replace(
            data,
            created=self._reading.created - 1,
            used=self._reading.used - self._is_used,
            drawn=counts.batch - self._began_at.batch,
            samples=counts.samples - self._began_at.samples,
            random=self._random_at_begin,
        )

    @property
    def _fit(self) -> FitData | None:
        return self._fit_data()

    def _epochs(self, counts: Counts) -> int:
        ended = counts.epoch - (not counts.epoch_ended) - self._reading.first_epoch
        return max(ended, 0)  # another model may have begun with the data in a later epoch

    def _make_iterator(self) -> Any:
        assert self._fit is not None
        place, self._resume_at = self._resume_at, None
        counts = self._counters.read()
        if not self._reading.created:
            self._reading.first_epoch = counts.epoch - 1 - (place.epochs if place else 0)
        if self._order is None:
            self._order = DataOrder() if self._counters.data_seeks else order_of(self._fit.dataset)
            self._warn(place)
        self.ends_epoch = place is not None and place.is_at_end and not self._fit.takes_steps
        if place is not None:
            self._replay(place)
        iterator = iter(self._fit.dataset)
        self._reading.created += 1
        self._is_used, self._began_at = False, counts
        if place is not None:
            self._drop(iterator, place)
        return iterator

    def _before_execution(self, execute: Callable[[Any], Any], iterator: Any) -> Any:
        if self.is_of_callback(iterator):
            return execute(iterator)
        if self._resume_at is not None:  # no callback of this package observes the data
            place, self._resume_at = self._resume_at, None
            if hasattr(iterator, "element_spec"):
                self._drop(iterator, place)
        if self._unseen and self._fit is not None:
            self._fit.count_as_seen(self._unseen)
            self._unseen = 0
        if not self._is_used:
            self._is_used = True
            self._reading.used += 1
        return execute(iterator)

    def _replay(self, place: Place) -> None:
        """Makes the earlier iterators again."""
        assert self._fit is not None and self._order is not None
        reading = self._reading
        behind, unread = place.created - reading.created, place.used - reading.used
        if self._order.replay in (Replay.CREATE, Replay.DRAW):
            for done in bounded(behind, f"makes {behind} earlier iterators of the data again", self._path):
                iterator = iter(self._fit.dataset)
                if self._order.replay is Replay.DRAW and behind - done <= unread:
                    next(iterator)
        reading.created, reading.used = max(reading.created, place.created), max(reading.used, place.used)

    def _drop(self, iterator: Any, place: Place) -> None:
        """Reads and drops the batches that are trained on already.

        Raises:
            InputError: if the data has fewer batches, or batches of another size.
        """
        counts = self._counters.read()
        if self._counters.data_seeks:
            return
        dropped: Counter[int] = Counter()
        drawn = 0 if place.is_at_end and not self._must_read else place.drawn
        for done in bounded(drawn, f"reads and drops {drawn} batches", self._path):
            try:
                batch = next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                raise InputError(
                    f"The data ends after {done} batches, but {self._path} was saved after batch {place.drawn} of it. "
                    "Resume with the same data and batch size."
                ) from None
            dropped.update(self._sizes(batch))
        if dropped and place.samples not in dropped.values() and ranks().size == 1:
            raise InputError(
                f"{self._path} was saved after {place.drawn} batches with {place.samples} samples, but here these batches have "
                f"{dropped.most_common(1)[0][1]}. In the middle of the data, resume with the batch size of the checkpoint."
            )
        self._began_at = Counts(batch=counts.batch - place.drawn, samples=counts.samples - place.samples)
        self._unseen = place.drawn - counts.batches_in_epoch

    @property
    def _must_read(self) -> bool:
        """Whether the order of later iterators depends on a read of this one."""
        draws = self._order is not None and self._order.replay is Replay.DRAW
        return draws or (self._fit is not None and self._fit.shuffles_by_python)

    def _sizes(self, batch: Any) -> dict[int, int]:
        """Returns the number of samples in a batch on all replicas, as counted in each part of the batch."""
        local = self._model.distribute_strategy.experimental_local_results
        parts = [local(part) for part in tf.nest.flatten(batch) if part is not None]
        return {number: sum(int(batch_size(share)) for share in part) for number, part in enumerate(parts)}

    def _warn(self, place: Place | None) -> None:
        """Warns if a resume may see other batches than the uninterrupted run."""
        assert self._order is not None
        if self._counters.data_seeks or not ranks().is_chief or not (place or self._will_resume):
            return
        assert self._fit is not None
        doubts = list(self._order.doubts)
        if place.created if place else not self._fit.takes_steps:
            doubts += doubts_of_replay(self._order)
        if place is not None:
            is_ahead = self._reading.created > place.created and not place.is_at_end
            if self._order.replay is not Replay.NOTHING and is_ahead:
                doubts.append("this process has read it already, which advanced its shuffles")
            if place.seeds is not None and place.seeds != self._order.seeds:
                doubts.append("its seeds differ from those of the resumed run")
        if doubts:
            warnings.warn(_warning(doubts, place), stacklevel=3)


def _warning(doubts: list[str], place: Place | None) -> str:
    why = "; ".join(doubts)
    if place is None:
        return (
            f"A resume may see this data in another order: {why}. It reads and drops as many batches as were trained on and "
            "continues with the next ones, so some samples may be repeated and others missed."
        )
    what = f"reads and drops {place.drawn} batches" if place.drawn else "begins the next pass"
    return (
        f"The data may come in another order than without the interruption: {why}. Training {what} and continues with the "
        "next batches, so some samples may be repeated and others missed."
    )


def _reading_of(source: Any) -> _Reading:
    try:
        return _readings.setdefault(source, _Reading())
    except TypeError:  # arrays and lists, whose iterators do not depend on earlier ones
        return _Reading()


def data_position_of(model: keras.Model) -> DataPosition:
    """Returns the position of a model's training in its data, the same object each time."""
    return attached(model, DataPosition) or attach(model, DataPosition(model))
