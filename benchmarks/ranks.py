"""What the benchmarks of ranks share: ranks on this machine, and acts measured by turns."""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable


def is_built(what: str) -> bool:
    """Whether Horovod is there; says so where it is not."""
    built = importlib.util.find_spec("horovod") is not None
    if not built:
        print(f"{what}: left out, needs `make horovod`")
    return built


def engines() -> list[str]:
    """The engines of several ranks that are installed."""
    return [*(["horovod"] if is_built("Horovod") else []), "multiworker"]


def command(ranks: int, logs: str, module: str, *arguments: str) -> list[str]:
    """What starts a module as ranks of this machine, the first of which is heard.

    Args:
        ranks: how many.
        logs: the directory for what all of them say.
        module, arguments: what each rank runs.
    """
    launcher = ["-m", "launch", "--standalone", "--nproc-per-node", str(ranks), "--log-dir", logs, "--local-ranks-filter", "0"]
    return [sys.executable, *launcher, "-m", module, *arguments]


def medians(*acts: Callable[[], object], rounds: int = 60) -> list[float]:
    """Milliseconds of each act. They are called by turns, so that what else the machine does falls on all alike."""
    times: list[list[float]] = [[] for _ in acts]
    for i in range(rounds):
        for act, taken in list(zip(acts, times, strict=True))[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            act()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[5:]) * 1e3 for taken in times]
