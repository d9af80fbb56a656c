"""Measures the start-up of this process, phase after phase: imports, data, build."""

import os
import time

_ended: list[tuple[str, float]] = []  # phases and their ends, in seconds since 1970
_since: float | None = None  # when the last training of this process ended


def process_began(pid: int) -> float | None:
    """Returns when a process of this host was started, in seconds since 1970; None if unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # proc(5), field 22
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None


def began() -> float:
    """Returns when this process was started, or when its last training ended; the end of the first phase if unknown."""
    first = _ended[0][1] if _ended else time.time()
    return _since or process_began(os.getpid()) or first


def end_phase(name: str) -> None:
    """Notes that a phase ends now. A phase may have several parts."""
    _ended.append((name, time.time()))


def restart() -> None:
    """Begins to measure the start-up of the next training in this process."""
    global _since
    _since = time.time()
    _ended.clear()


def phases() -> dict[str, float]:
    """Returns name -> seconds of each phase. The first one began with the process."""
    seconds: dict[str, float] = {}
    before = began()
    for name, ended in _ended:
        seconds[name] = seconds.get(name, 0.0) + max(ended - before, 0.0)
        before = ended
    return seconds
