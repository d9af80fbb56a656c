"""Charges each second of a process to a name. It knows neither Keras nor files, and receives its clock."""

from collections.abc import Callable, Mapping

from callbacks.counting.batch_times import BatchTimes

FIRST_STEP, LARGEST_STEP, SHARE = 0.1, 60.0, 0.005  # between ticks: fewest seconds, most seconds, share of the time so far


class TimeAccount:
    """Charges all time since a process's start to names, so that the seconds add up to its age.

    Args:
        clock: returns seconds since 1970.
        began: when the process was started.
        phases: name -> seconds that are over already.

    Attributes:
        began: as given.
        seconds: name -> seconds.
        times: the seconds of the batches after the first.

    Example:

    >>> account = TimeAccount(clock=lambda: 105.0, began=100.0, phases={"imports": 3.0})
    >>> account.charge("restore")
    2.0
    >>> account.seconds
    {'imports': 3.0, 'restore': 2.0}
    """

    def __init__(self, clock: Callable[[], float], began: float, phases: Mapping[str, float]):
        self._clock, self.began = clock, began
        self.seconds = dict(phases)
        self._charged_to = began + sum(phases.values())
        self._blocked = 0.0
        self._batch_began: float | None = None
        self._arrived: float | None = None
        self.times = BatchTimes()
        self._next_tick = 0.0

    def charge(self, name: str, blocked: float | None = None) -> float:
        """Charges the time since the last call.

        Args:
            name: the name to charge.
            blocked: the total seconds that training stood still for saves. Their increase since the last call is charged to
                `"blocked"`.

        Returns:
            The seconds charged to the name.
        """
        now = self._clock()
        passed = max(now - self._charged_to, 0.0)
        self._charged_to = max(now, self._charged_to)
        newly_blocked = 0.0
        if blocked is not None:
            newly_blocked = min(max(blocked - self._blocked, 0.0), passed)
            self._blocked = blocked
            self.seconds["blocked"] = self.seconds.get("blocked", 0.0) + newly_blocked
        self.seconds[name] = self.seconds.get(name, 0.0) + passed - newly_blocked
        return passed - newly_blocked

    def begin_batch(self) -> None:
        """Notes that the train function begins. Call it after a charge."""
        self._batch_began, self._arrived = self._clock(), None

    def note_data(self) -> None:
        """Notes that the data of the batch have arrived. Call it from any thread, for a sample of batches."""
        self._arrived = self._clock()

    def end_batch(self, count: int, beside_write: bool, begins_epoch: bool = False) -> None:
        """Charges batches after the first.

        Args:
            count: the number of batches.
            beside_write: whether a checkpoint was being written meanwhile.
            begins_epoch: whether this is the first batch of an epoch. Its wait for data, if it is known, is charged to `"epochs"`,
                because it says nothing about other batches.
        """
        began, arrived = self._batch_began, self._arrived
        self._batch_began = None
        seconds = self.charge("batches")
        waited = None if began is None or arrived is None else arrived - began
        counted = self.times.add(count, seconds, waited, begins_epoch=begins_epoch, beside_write=beside_write)
        if counted < seconds:
            self.seconds["batches"] -= seconds - counted
            self.seconds["epochs"] = self.seconds.get("epochs", 0.0) + seconds - counted

    def tick_is_due(self) -> bool:
        """Returns whether to write the account to disk: often enough that a kill loses at most half a percent of the time."""
        now = self._clock()
        if now < self._next_tick:
            return False
        self._next_tick = now + min(max(SHARE * (now - self.began), FIRST_STEP), LARGEST_STEP)
        return True
