"""A clock that the test advances."""


class Clock:
    """Returns `now`, in seconds."""

    def __init__(self, now: float = 0.0):
        self.now = now

    def __call__(self) -> float:
        return self.now
