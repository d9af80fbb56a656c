"""Decides whether all ranks restart after a failure."""

from dataclasses import dataclass

from launch.exit_codes import NEVER_RESTARTED

FIRST_WAIT = 0.5  # seconds; doubled after each restart without progress
LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class Decision:
    """What follows a failure.

    Args:
        wait: seconds until all ranks restart; None: the run is over.
        why: one line for the user; may be empty.
    """

    wait: float | None
    why: str


class Restarts:
    """Counts restarts. The count resets whenever training gets further than before.

    Args:
        most: the maximum number of restarts without progress in between.
    """

    def __init__(self, most: int):
        self._most = most
        self._used = 0
        self._furthest = -1
        self._crashed_at: int | None = None

    def after_failure(self, code: int, batch: int | None) -> Decision:
        """Decides what follows a failed attempt. Two failures in a row at the same batch end the run.

        Args:
            code: the exit code of the attempt.
            batch: the highest batch that any rank reported in the attempt; None if no rank reported one.
        """
        if code in NEVER_RESTARTED or not self._most:
            return Decision(None, "")
        if batch is not None and batch == self._crashed_at:
            return Decision(None, f"not restarted: the run failed twice in a row at batch {batch}")
        self._crashed_at = batch
        if batch is not None and batch > self._furthest:
            self._furthest, self._used = batch, 0
        if self._used == self._most:
            return Decision(None, f"not restarted: reached the limit of {_times(self._most)} without progress (--max-restarts)")
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._used, 10))
        self._used += 1
        return Decision(wait, f"all ranks restart in {wait:g} s (restart {self._used} of {self._most})")


def _times(count):
    return f"{count} restart" + ("" if count == 1 else "s")
