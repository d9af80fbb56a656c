"""Where the seconds of a process go: each one is charged to one name. Nothing here knows Keras or files; the clock is given."""

from collections.abc import Callable, Mapping

FIRST_STEP, LARGEST_STEP, SHARE = 0.1, 60.0, 0.005  # seconds between two ticks: at least, at most, and of the time so far


class TimeAccount:
    """Charges all time from a process's start to names, so that they add up to its age.

    Args:
        clock: returns seconds since 1970.
        began: when the process was started.
        phases: seconds that were spent already, by name.

    Attributes:
        began: as given.
        seconds: name -> seconds.
        batches: `[count, seconds]` of batches after the first.
        beside: the same, of those beside which a checkpoint was written.
        sampled: `[seconds waiting for data, seconds of the batches]`, of the batches for which that was noted.

    Example:

    >>> account = TimeAccount(time.time, began=time.time() - 5, phases={"imports": 3.0})
    >>> account.charge("restore")
    >>> sum(account.seconds.values())
    5.0
    """

    def __init__(self, clock: Callable[[], float], began: float, phases: Mapping[str, float]):
        self._clock, self.began = clock, began
        self.seconds = dict(phases)
        self._charged_to = began + sum(phases.values())
        self._blocked = 0.0
        self._batch_began: float | None = None
        self._arrived: float | None = None
        self.batches, self.beside, self.sampled = [0, 0.0], [0, 0.0], [0.0, 0.0]
        self._next_tick = 0.0

    def charge(self, name: str, blocked: float | None = None) -> float:
        """Charges the time since the last call.

        Args:
            name: what it was spent on.
            blocked: seconds that training has stood still for saves, over all; what was added to them since the last call is
                charged to `"blocked"`.

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
        """To be called when the train function begins, after a charge."""
        self._batch_began, self._arrived = self._clock(), None

    def note_data(self) -> None:
        """To be called, from any thread, when the data of the batch have arrived; not for every batch."""
        self._arrived = self._clock()

    def end_batch(self, count: int, beside_write: bool) -> None:
        """Charges batches, but for the first one.

        Args:
            count: how many.
            beside_write: whether a checkpoint was being written meanwhile.
        """
        began, arrived = self._batch_began, self._arrived
        self._batch_began = None
        seconds = self.charge("batches")
        for kind in [self.batches, self.beside] if beside_write else [self.batches]:
            kind[0] += count
            kind[1] += seconds
        if began is not None and arrived is not None:
            self.sampled[0] += min(max(arrived - began, 0.0), seconds)
            self.sampled[1] += seconds

    def tick_is_due(self) -> bool:
        """Whether to write down the account: so often that no more than half a percent of the time is missing after a kill."""
        now = self._clock()
        if now < self._next_tick:
            return False
        self._next_tick = now + min(max(SHARE * (now - self.began), FIRST_STEP), LARGEST_STEP)
        return True
