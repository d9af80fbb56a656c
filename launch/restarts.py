"""When all ranks are started again after a failure, and when that would be pointless."""

from dataclasses import dataclass

from launch.exit_codes import NEVER_RESTARTED

FIRST_WAIT = 0.5  # seconds, doubled with every restart without progress
LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class Decision:
    """What follows a failure.

    Args:
        wait: seconds until all ranks start again; None: the run is over.
        why: what to tell the user; empty if there is nothing to tell.
    """

    wait: float | None
    why: str


class Restarts:
    """The budget of restarts.

    Args:
        most: restarts without progress in between.
    """

    def __init__(self, most: int):
        self._most = most
        self._used = 0
        self._furthest = -1
        self._crashed_at: int | None = None

    def after_failure(self, code: int, batch: int | None) -> Decision:
        """Decides what follows an attempt that failed.

        Args:
            code: the exit code of the run if it ended here.
            batch: the last batch that any rank reported in that attempt; None: none did.
        """
        if code in NEVER_RESTARTED or not self._most:
            return Decision(None, "")
        if batch is not None and batch == self._crashed_at:
            return Decision(None, f"not started again: it failed at batch {batch} twice in a row, and would a third time")
        self._crashed_at = batch
        if batch is not None and batch > self._furthest:
            self._furthest, self._used = batch, 0  # progress renews the budget
        if self._used == self._most:
            return Decision(None, f"not started again: {_times(self._most)} without progress was the limit (--max-restarts)")
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._used, 10))
        self._used += 1
        return Decision(wait, f"all ranks start again in {wait:g} s (restart {self._used} of {self._most})")


def _times(count):
    return f"{count} restart" + ("" if count == 1 else "s")
