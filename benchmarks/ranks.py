"""Code that the benchmarks of ranks share: starts ranks on this machine, and measures functions in turns."""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable


def is_built(what: str) -> bool:
    """Returns whether Horovod is installed; prints a line if it is not."""
    built = importlib.util.find_spec("horovod") is not None
    if not built:
        print(f"{what}: not measured, needs `make horovod`")
    return built


def engines() -> list[str]:
    """Returns the installed engines of several ranks."""
    return [*(["horovod"] if is_built("Horovod") else []), "multiworker"]


def command(ranks: int, logs: str, module: str, *arguments: str) -> list[str]:
    """Returns the command that starts ranks on this machine and shows the output of rank 0.

    Args:
        ranks: the number of ranks.
        logs: the directory of the logs.
        module, arguments: what each rank runs.
    """
    launcher = ["-m", "launch", "--standalone", "--nproc-per-node", str(ranks), "--log-dir", logs, "--local-ranks-filter", "0"]
    return [sys.executable, *launcher, "-m", module, *arguments]


def medians(*acts: Callable[[], object], rounds: int = 60) -> list[float]:
    """Returns the median milliseconds of each function. They take turns, so that other load affects all alike."""
    times: list[list[float]] = [[] for _ in acts]
    for i in range(rounds):
        for act, taken in list(zip(acts, times, strict=True))[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            act()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[5:]) * 1e3 for taken in times]
