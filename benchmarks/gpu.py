"""The recipes on a GPU: images and tokens per second, relative to a plain `fit` of Keras; the cost of a save; three settings.

    python -m benchmarks.gpu                   # under six minutes, on the first GPU
    python -m benchmarks.gpu --minutes 15      # measures more of what XLA compiles
    python -m benchmarks.gpu --tiny            # small models, also on a CPU: shows that the benchmark runs

Each training is measured for a few seconds after its first batches. Trainings with deterministic operations have their own process,
because the switch cannot be undone. Each process gets a share of the time and measures the most important trainings first; when
its time is over, the rest is left out. The output is tables for benchmarks/README.md. Not run on a GPU yet.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from benchmarks.gpu_cells import Cell, SaveCost, Speed, copies_to_host, save_cost, serve, speed
from benchmarks.gpu_models import LARGE, TINY, WORKLOADS
from benchmarks.own_process import silent_children

PRECISIONS = ("bfloat16", "TF32", "float32")
MINUTES = 5.7
MISSING = "-"  # in a table: the time was too short, or the value is unknown

Task = tuple[Any, Callable, tuple]  # a key for the result, a function and its arguments
Results = dict[Any, Any]


@dataclass(frozen=True)
class Job:
    """The measurements of one process.

    Args:
        share: its share of the total time.
        tasks: the measurements, the most important first.
        environment: additional environment variables.
    """

    share: float
    tasks: list[Task]
    environment: Mapping[str, str]


def plan(batches: Mapping[str, int], precisions: Sequence[str], seconds: float) -> list[Job]:
    """Returns the processes, in their order.

    Args:
        batches: the batch size of each workload.
        precisions: the precisions, the most important first.
        seconds: how long each training is measured.
    """

    def task(name, precision, **options):
        cell = Cell(name, batches[name], precision, **options)
        return cell, speed, (cell, seconds)

    jobs, names = [], list(batches)
    for name in names:
        first, *others = precisions
        tasks = [
            task(name, first),
            (("save", name), save_cost, (name, batches[name])),
            task(name, first, is_plain=True, compiled=None),
        ]
        tasks += [task(name, first, compiled=True), *(task(name, other) for other in others)]
        for other in others:
            tasks += [task(name, other, is_plain=True, compiled=None), task(name, other, compiled=True)]
        jobs.append(Job(0.32, tasks, {}))
    for name in names:
        jobs.append(Job(0.1, [task(name, each, deterministic=True) for each in precisions], {}))
    prefetching = [task(names[0], precisions[0], is_plain=True, prefetched=prefetched) for prefetched in (False, True)]
    jobs.append(Job(0.1, [*prefetching, (("copies", names[-1]), copies_to_host, (names[-1],))], {}))
    _, *how = task(names[0], precisions[0])
    jobs.append(Job(0.06, [(("threads", names[0]), *how)], {"TF_GPU_THREAD_MODE": "global"}))
    return jobs


def run(jobs: Sequence[Job], seconds: float) -> Results:
    """Runs the processes one after the other. If one ends early, the next ones get the rest of its time.

    Args:
        jobs: the processes.
        seconds: the total time.
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
    """Yields the results of a process until the deadline."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(job.tasks, job.environment, scratch, theirs), daemon=True)
    with silent_children():
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


def speeds(results: Results, batches: Mapping[str, int], precisions: Sequence[str]) -> str:
    """Returns the table of trainings: images or tokens per second, the ratio to the plain `fit`, and MFU."""
    columns = {
        "plain `fit`": {"is_plain": True, "compiled": None},
        "ours": {},
        "ours, compiled": {"compiled": True},
        "ours, deterministic": {"deterministic": True},
    }
    rows = [["per second (relative to the plain `fit`; MFU)", *columns]]
    for name, batch in batches.items():
        for precision in precisions:
            found = [results.get(Cell(name, batch, precision, **options), MISSING) for options in columns.values()]
            cells = [_cell(each, found[0]) for each in found]
            rows.append([f"{name}, {WORKLOADS[name].unit}, batches of {batch}, {precision}", *cells])
    return _table(rows)


def saves(results: Results, names: Iterable[str]) -> str:
    """Returns the table of saves."""
    rows = [["a save of the state, in bfloat16", "bytes", "blocked, ms", "additional memory of the GPU, MB"]]
    for name in names:
        cost = results.get(("save", name), MISSING)
        if isinstance(cost, SaveCost):
            more = MISSING if cost.device_memory is None else f"{cost.device_memory / 1e6:.0f}"
            rows.append([name, f"{cost.bytes / 1e6:.0f} MB", f"{cost.blocked * 1e3:.1f}", more])
        else:
            rows.append([name, str(cost), "", ""])
    return _table(rows)


def settings(results: Results, batches: Mapping[str, int], precision: str) -> str:
    """Returns the table of settings for GPUs, with and without each."""
    name, *_, last = batches
    ours, plain, prefetched = (
        results.get(Cell(name, batches[name], precision, **options), MISSING)
        for options in ({}, {"is_plain": True}, {"is_plain": True, "prefetched": True})
    )
    copies = results.get(("copies", last), MISSING)
    rates = [f"{rate / 1e9:.1f} GB/s" for rate in copies.values()] if isinstance(copies, dict) else [str(copies)] * 2
    return _table(
        [
            ["setting", "without", "with"],
            ["`TF_GPU_THREAD_MODE=gpu_private` (on in recipes)", _said(results.get(("threads", name), MISSING)), _said(ours)],
            ["prefetch to the device (off in recipes)", _said(plain), _said(prefetched)],
            ["pinned memory for copies to the host (off in recipes)", *rates],
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
    if isinstance(result, Speed):
        return f"{result.per_second:.0f}"
    if isinstance(result, SaveCost):
        return f"blocks for {result.blocked * 1e3:.1f} ms"
    return ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in result.items()) if isinstance(result, dict) else result


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
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help=f"the total time ({MINUTES})")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="how long each training is measured (4)")
    parser.add_argument("--divide-batches", type=int, default=1, metavar="N", help="for a GPU with less memory than 80 GB (1)")
    parser.add_argument("--tiny", action="store_true", help="small models in bfloat16, also without a GPU")
    args = parser.parse_args(argv)
    gpus = tf.config.list_physical_devices("GPU")
    if not (gpus or args.tiny):
        print("gpu: left out, needs a GPU (python -m benchmarks.gpu --tiny runs small models on a CPU)")
        return
    names, precisions = (TINY, PRECISIONS[:1]) if args.tiny else (LARGE, PRECISIONS)
    device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    print(f"recipes on one {device}, at most {args.minutes:g} minutes; {MISSING}: the time was too short, or the value is unknown")
    batches = {name: WORKLOADS[name].batch // args.divide_batches for name in names}
    results = run(plan(batches, precisions, args.seconds), args.minutes * 60)
    for table in (speeds(results, batches, precisions), saves(results, batches), settings(results, batches, precisions[0])):
        print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
