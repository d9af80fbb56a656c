"""The launcher, compared with torchrun and horovodrun, with trivial ranks.

Measures seconds from start to finish for 4, 16 and 64 ranks; seconds from the first failure to the end of the last rank and of the
command; the delay of 8 ranks that write 10 MB/s each; and the memory of the launcher's processes. Leaves out launchers that are not
installed (benchmarks/requirements.txt).
"""

import contextlib
import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 3
ROOT = Path(__file__).parent.parent
NOTHING = "exit 0"
RUN_SCRIPT = 'eval "$SCRIPT"'  # torchrun replaces `$$` in a command line
FAILS = """
case $RANK$HOROVOD_RANK in
0*) while [ $(ls pid-* 2>/dev/null | wc -l) -lt 3 ]; do sleep 0.05; done; sleep 0.3; date +%s.%N > failed; exit 1;;
*) echo $$ > pid-$RANK$HOROVOD_RANK; exec sleep 60;;
esac
"""
FLOODS = """
import os, time
block = (b"z" * 99 + b"\\n") * 1000  # 100 kB, which is due every 10 ms
began, late = time.monotonic(), 0.0
for n in range(300):
    time.sleep(max(0, began + n / 100 - time.monotonic()))
    os.write(1, block)
    late = max(late, time.monotonic() - began - n / 100)
open("late-" + (os.environ.get("RANK") or os.environ["HOROVOD_RANK"]), "w").write(str(late))
"""


def ours(ranks: int, *command: str) -> list[str]:
    """Returns the command line of this repository's launcher."""
    return [sys.executable, "-m", "launch", "--nproc-per-node", str(ranks), "--no-python", *command]


def torchrun(ranks: int, *command: str) -> list[str]:
    """Returns the command line of torchrun, with logs and output on the terminal."""
    logs = ["--log-dir", "torchrun-logs", "--tee", "3"]
    return ["torchrun", "--standalone", "--nproc-per-node", str(ranks), *logs, "--no-python", *command]


def horovodrun(ranks: int, *command: str) -> list[str]:
    """Returns the command line of horovodrun, likewise."""
    return ["horovodrun", "-np", str(ranks), "--gloo", "--output-filename", "horovodrun-logs", *command]


def peers() -> dict[str, Callable[..., list[str]]]:
    """Returns the installed launchers; prints which are missing."""
    found: dict[str, Callable[..., list[str]]] = {"launch": ours}
    for name, command in (("torchrun", torchrun), ("horovodrun", horovodrun)):
        if shutil.which(name, path=_path()):
            found[name] = command
        else:
            print(f"{name}: not measured, not installed")
    return found


def start(command: list[str], folder: str) -> subprocess.Popen:
    """Starts a command in a folder, with its output in a file there."""
    with open(os.path.join(folder, "output"), "wb") as output:
        environment = {**os.environ, "PATH": _path(), "PYTHONPATH": str(ROOT), "SCRIPT": FAILS}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def start_to_finish(command: list[str]) -> float:
    """Returns the seconds that a command takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with start(command, folder) as process:
            code = process.wait()
        if code:
            raise RuntimeError(f"{command} ended with {code}: {Path(folder, 'output').read_text()}")
        return time.perf_counter() - began


def failure(command: list[str]) -> tuple[float, float]:
    """Returns seconds from the failure of rank 0 of 4 to the end of the last rank, and of the command."""
    with tempfile.TemporaryDirectory() as folder, start(command, folder) as process:
        failed, pids, gone, ended = Path(folder, "failed"), list[int](), 0.0, 0.0
        while not gone or not ended:
            time.sleep(0.002)
            if not pids and failed.exists() and failed.read_text():
                pids = [int(path.read_text()) for path in Path(folder).glob("pid-*")]
            if pids and not gone and not any(map(_runs, pids)):
                gone = time.time()
            if not ended and process.poll() is not None:
                ended = time.time()
        at = float(failed.read_text())
        return gone - at, ended - at


def flood(command: list[str]) -> float:
    """Returns the largest delay, in seconds, of 8 ranks that write 10 MB/s each."""
    with tempfile.TemporaryDirectory() as folder, start(command, folder) as process:
        process.wait()
        return max(float(path.read_text()) for path in Path(folder).glob("late-*"))


def memory(command: list[str]) -> float:
    """Returns the memory of a launcher without its ranks, in MB; shared pages count once."""
    with tempfile.TemporaryDirectory() as folder, start(command, folder) as process:
        time.sleep(8)
        kilobytes = 0
        for pid in _family(process.pid):
            with contextlib.suppress(OSError):
                if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
                    kilobytes += int(rollup[rollup.index("Pss:") + 1])
        process.send_signal(signal.SIGTERM)
        return kilobytes / 1024


def main() -> None:
    """Prints the medians, one column for each launcher."""
    launchers = peers()
    print(f"{'launcher':<44}" + "".join(f"{name:>12}" for name in launchers))
    python = [sys.executable, "-S", "-c"]
    for ranks, rounds in ((4, ROUNDS), (16, ROUNDS), (64, 1)):
        trivial = functools.partial(lambda count, line: start_to_finish(line(count, "sh", "-c", NOTHING)), ranks)
        _row(f"{ranks} trivial ranks, start to finish, s", launchers, trivial, rounds)
    _row("from a failure to the last rank's end, s", launchers, lambda line: failure(line(4, "sh", "-c", RUN_SCRIPT))[0])
    _row("from a failure to the command's end, s", launchers, lambda line: failure(line(4, "sh", "-c", RUN_SCRIPT))[1])
    _row("delay of 8 ranks with 10 MB/s each, s", launchers, lambda line: flood(line(8, *python, FLOODS)), rounds=1)
    _row("memory of the launcher of 4 ranks, MB", launchers, lambda line: memory(line(4, "sleep", "12")), rounds=1)


def _row(what, launchers, measure, rounds=ROUNDS):
    found: dict[str, list[float]] = {name: [] for name in launchers}
    for _ in range(rounds):  # in turns, so that other load affects all launchers alike
        for name, line in launchers.items():
            found[name].append(measure(line))
    print(f"{what:<44}" + "".join(f"{statistics.median(values):>12.2f}" for values in found.values()), flush=True)


def _path():
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])


def _runs(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _family(pid):
    found = [pid]
    for each in found:  # the list grows during the loop
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


if __name__ == "__main__":
    main()
