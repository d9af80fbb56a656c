"""A GPU at work: images and tokens per second of the recipes beside a plain `fit` of Keras, the cost of a save, and three habits.

    python -m benchmarks.gpu                   # under six minutes, on the first GPU
    python -m benchmarks.gpu --minutes 15      # what six minutes leave out, XLA's compilations above all
    python -m benchmarks.gpu --tiny            # small models, also on a CPU: shows that it runs, and measures nothing

Each training runs for a few seconds that count, after its first batches, which do not. Those with deterministic operations run
in a process of their own, since the switch cannot be undone. Every process has a share of the time; what it has not measured by
then is left out, the most telling first. Printed as tables for benchmarks/README.md. Not run on a GPU yet.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from benchmarks.gpu_cells import Cell, SaveCost, Speed, copies_to_host, save_cost, serve, speed
from benchmarks.gpu_models import LARGE, TINY, WORKLOADS

PRECISIONS = ("bfloat16", "TF32", "float32")
MINUTES = 5.7
MISSING = "-"  # in a table, of what the time did not suffice for

Task = tuple[Any, Callable, tuple]  # a key for the result, a function and its arguments
Results = dict[Any, Any]


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Args:
        share: of the whole time.
        tasks: what it does, the most important first.
        environment: variables that are set for it.
    """

    share: float
    tasks: list[Task]
    environment: Mapping[str, str]


def plan(names: Sequence[str], precisions: Sequence[str], seconds: float) -> list[Job]:
    """Returns the processes, in their order.

    Args:
        names: workloads.
        precisions: of `PRECISIONS`, the most important first.
        seconds: that count for each training.
    """

    def task(*arguments, **options):
        cell = Cell(*arguments, **options)
        return cell, speed, (cell, seconds)

    jobs = []
    for name in names:
        first, *others = precisions
        tasks = [task(name, first), (("save", name), save_cost, (name,)), task(name, first, is_plain=True, compiled=None)]
        tasks += [task(name, first, compiled=True), *(task(name, other) for other in others)]
        for other in others:
            tasks += [task(name, other, is_plain=True, compiled=None), task(name, other, compiled=True)]
        jobs.append(Job(0.32, tasks, {}))
    for name in names:
        jobs.append(Job(0.1, [task(name, each, deterministic=True) for each in precisions], {}))
    habits = [task(names[0], precisions[0], is_plain=True, prefetched=prefetched) for prefetched in (False, True)]
    jobs.append(Job(0.1, [*habits, (("copies", names[-1]), copies_to_host, (names[-1],))], {}))
    key = ("threads", names[0])
    jobs.append(Job(0.06, [(key, speed, (Cell(names[0], precisions[0]), seconds))], {"TF_GPU_THREAD_MODE": "global"}))
    return jobs


def run(jobs: Sequence[Job], seconds: float) -> Results:
    """Runs the processes one after the other. What one leaves of its time, the next ones have.

    Args:
        jobs: the processes.
        seconds: for all of them.
    """
    began, due, results = time.monotonic(), 0.0, {}
    for job in jobs:
        due += job.share / sum(each.share for each in jobs) * seconds
        with tempfile.TemporaryDirectory() as scratch:  # a process that is killed leaves its files
            for key, result in _results_of(job, scratch, began + due):
                results[key] = result
                print(f"  {time.monotonic() - began:5.0f} s  {_name(key)}: {_said(result)}", flush=True)
    return results


def _results_of(job, scratch, deadline):
    """Yields what a process measures, until the time is over."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(job.tasks, {**job.environment, "TMPDIR": scratch}, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        for _ in job.tasks:
            if not ours.poll(max(0.0, deadline - time.monotonic())):
                return
            yield ours.recv()
    except EOFError:  # it has crashed
        return
    finally:
        process.kill()
        process.join()


def speeds(results: Results, names: Sequence[str], precisions: Sequence[str]) -> str:
    """The table of the trainings: units per second, the ratio to the plain `fit`, and the utilization."""
    columns = {
        "plain `fit`": {"is_plain": True, "compiled": None},
        "ours": {},
        "ours, compiled": {"compiled": True},
        "ours, deterministic": {"deterministic": True},
    }
    rows = [["per second (of the plain `fit`; MFU)", *columns]]
    for name in names:
        workload = WORKLOADS[name]
        for precision in precisions:
            found = [results.get(Cell(name, precision, **options), MISSING) for options in columns.values()]
            cells = [_cell(each, found[0]) for each in found]
            rows.append([f"{name}, {workload.unit}, batches of {workload.batch}, {precision}", *cells])
    return _table(rows)


def saves(results: Results, names: Sequence[str]) -> str:
    """The table of the saves."""
    rows = [["a save of the state, in bfloat16", "bytes", "blocked, ms", "more memory of the device, MB"]]
    for name in names:
        cost = results.get(("save", name), MISSING)
        if isinstance(cost, SaveCost):
            more = MISSING if cost.device_memory is None else f"{cost.device_memory / 1e6:.0f}"
            rows.append([name, f"{cost.bytes / 1e6:.0f} MB", f"{cost.blocked * 1e3:.1f}", more])
        else:
            rows.append([name, str(cost), "", ""])
    return _table(rows)


def habits(results: Results, names: Sequence[str], precision: str) -> str:
    """The table of what recipes do, or leave, on GPUs."""
    name, ours = names[0], results.get(Cell(names[0], precision), MISSING)
    plain, prefetched = (
        results.get(Cell(name, precision, is_plain=True, prefetched=prefetched), MISSING) for prefetched in (False, True)
    )
    copies = results.get(("copies", names[-1]), MISSING)
    rates = [f"{rate / 1e9:.1f} GB/s" for rate in copies.values()] if isinstance(copies, dict) else [str(copies)] * 2
    return _table(
        [
            ["habit", "without", "with"],
            ["`TF_GPU_THREAD_MODE=gpu_private`, as recipes have it", _said(results.get(("threads", name), MISSING)), _said(ours)],
            ["prefetching to the device, not in recipes", _said(plain), _said(prefetched)],
            ["pinned memory for copies to the host, not in recipes", *rates],
        ]
    )


def _name(key):
    if not isinstance(key, Cell):
        return " of ".join(key)
    how = [
        "plain fit" if key.is_plain else "ours",
        *(["compiled"] if key.compiled else []),
        *(["deterministic"] if key.deterministic else []),
        *(["prefetched"] if key.prefetched else []),
    ]
    return f"{key.workload}, {key.precision}, {', '.join(how)}"


def _said(result):
    return f"{result.per_second:.0f}" if isinstance(result, Speed) else str(result)


def _cell(speed, plain):
    notes = []
    if isinstance(speed, Speed) and isinstance(plain, Speed) and speed is not plain:
        notes.append(f"{speed.per_second / plain.per_second:.2f}")
    if isinstance(speed, Speed) and speed.utilization is not None:
        notes.append(f"{speed.utilization:.0%}")
    return _said(speed) + (f" ({'; '.join(notes)})" if notes else "")


def _table(rows):
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main(argv: Sequence[str] = ()) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The recipes on one GPU.")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help=f"for all of it ({MINUTES})")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="that count for each training (4)")
    parser.add_argument("--tiny", action="store_true", help="small models in bfloat16, also without a GPU")
    args = parser.parse_args(argv)
    gpus = tf.config.list_physical_devices("GPU")
    if not (gpus or args.tiny):
        print("gpu: left out, needs a GPU; --tiny of python -m benchmarks.gpu runs small models on a CPU")
        return
    names, precisions = (TINY, PRECISIONS[:1]) if args.tiny else (LARGE, PRECISIONS)
    device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    print(f"recipes on one {device}, at most {args.minutes:g} minutes; {MISSING}: the time did not suffice, or not known")
    results = run(plan(names, precisions, args.seconds), args.minutes * 60)
    for table in (speeds(results, names, precisions), saves(results, names), habits(results, names, precisions[0])):
        print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
