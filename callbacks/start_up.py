"""How long this process took until it trains, by phases that end one after the other: imports, data, build."""

import os
import time

_ended: list[tuple[str, float]] = []  # phases, and when they ended, in seconds since 1970
_since: float | None = None  # when the last training of this process ended


def process_began(pid: int) -> float | None:
    """Returns when a process of this host was started, in seconds since 1970; None if the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # proc(5), field 22
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None


def began() -> float:
    """Returns when the start-up began: when this process was started; if the system does not tell, when the first phase ended."""
    first = _ended[0][1] if _ended else time.time()
    return _since or process_began(os.getpid()) or first


def end_phase(name: str) -> None:
    """Notes that a phase ends now; the next one begins. A phase may have several parts."""
    _ended.append((name, time.time()))


def restart() -> None:
    """Has the start-up of the next training in this process begin now."""
    global _since
    _since = time.time()
    _ended.clear()


def phases() -> dict[str, float]:
    """Returns the seconds of each phase: name -> seconds. The first one began with the process."""
    seconds: dict[str, float] = {}
    before = began()
    for name, ended in _ended:
        seconds[name] = seconds.get(name, 0.0) + max(ended - before, 0.0)
        before = ended
    return seconds
