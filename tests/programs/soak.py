"""Ends trainings repeatedly, with faults that a seed selects, and checks what is left: `make faults`.

PYTHONPATH=.:tests/helpers python tests/programs/soak.py [--rounds 100] [--seed 0]

A round is one attempt of a training: it is killed, receives many signals at any moment (even during imports), meets a disk error,
or its clock jumps before it is killed. After each round, every visible checkpoint verifies, and the newest is not older than
before. One training always runs on one device, and must end with the bits of the uninterrupted training. Another one uses another
number of replicas in each attempt, and must end with the same weights up to rounding.
"""

import argparse
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
from compare import assert_same_weights
from faulty_run import BATCHES, TEMPLATE
from processes import PROGRAM_ENVIRONMENT, PROGRAMS
from shims import compile_shim, compiler

from callbacks.disk import files

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
LEFT = {75, 130, 143, *(-number for number in SIGNALS)}  # exit codes after signals, also of one that came before they were caught
CALLS = {"open": 3, "write": 40, "fsync": 3, "read": 6, "close": 3, "rename": 3}  # and how many of them some saves make
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)


class Training:
    """One training, over all its attempts.

    Args:
        directory: where its checkpoints go, and beside it those of the undisturbed one.
        replicas: the numbers of replicas to choose from.
        rounds: attempts to end early.
        choose: chooses.
        shim: the library that makes calls fail; None without a compiler.
    """

    def __init__(self, directory: Path, replicas: list[int], rounds: int, choose: random.Random, shim: Path | None):
        self._whole, self._directory, self._replicas = directory / "whole", directory / "disturbed", replicas
        self._epochs, self._choose, self._shim, self._newest = rounds + 2, choose, shim, ""
        self._rounds = rounds
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        """Runs all attempts, and compares the result with that of the uninterrupted training."""
        whole = self._start(self._whole, self._replicas[0])
        assert whole.wait() == 0, whole.communicate()
        ways = [self._kill, self._storm, self._jump, *([self._break_disk] if self._shim else [])]
        for number in range(self._rounds):
            replicas = self._choose.choice(self._replicas)
            if number % len(ways) == 0:  # each way comes equally often
                self._choose.shuffle(ways)
            said = ways[number % len(ways)](replicas)
            if said is None:
                break  # it ended before
            before, self._newest = self._newest, self._look()
            self.seen[said] += 1
            print(
                f"round {number + 1}, {replicas or 1} replicas: {said}; newest {before or None} -> {self._newest or None}",
                flush=True,
            )
            assert self._newest >= before, "the newest checkpoint is gone"
        last = self._start(self._directory, self._replicas[0])
        assert last.wait() == 0, last.communicate()
        self._compare(TEMPLATE.format(batch=self._epochs * BATCHES))
        assert self._visible() == sorted(path.name for path in self._whole.iterdir())
        assert not list(self._directory.glob(".*")), list(self._directory.iterdir())

    def _start(self, directory, replicas, *flags, **environment):
        arguments = map(str, (PROGRAMS / "faulty_run.py", directory, self._epochs, replicas, *flags))
        environment = {**PROGRAM_ENVIRONMENT, **environment}
        output = subprocess.PIPE
        return subprocess.Popen([sys.executable, *arguments], text=True, stdout=output, stderr=output, env=environment)

    def _kill(self, replicas, *flags):
        process, inside = self._start(self._directory, replicas, *flags), self._choose.random() < 0.7
        moment = (lambda: any(self._directory.glob(".tmp-*"))) if inside else self._directory.exists
        if not (self._wait_for_saves(process) and self._wait_for(moment, process)):
            return None
        time.sleep(self._choose.random() * (0.02 if inside else 0.2))
        process.kill()
        process.communicate()
        return "killed inside a write" if any(self._directory.glob(".tmp-*")) else "killed between writes"

    def _jump(self, replicas):
        said = self._kill(replicas, "--jump", self._choose.choice([-3600, 3600]))
        return said and f"a clock that jumped, {said}"

    def _storm(self, replicas):
        process = self._start(self._directory, replicas)
        if self._choose.random() < 0.5:
            time.sleep(self._choose.random() * 4)
        elif not self._wait_for_saves(process):
            return None
        for _ in range(self._choose.randrange(1, 30)):
            if process.poll() is None:
                process.send_signal(self._choose.choice(SIGNALS))
            time.sleep(self._choose.random() * 0.02)
        _, errors = process.communicate()
        if process.returncode == 0:
            return None
        before_caught = "KeyboardInterrupt" in errors and process.returncode == 1
        assert process.returncode in LEFT or before_caught, (process.returncode, errors)
        return "a storm of signals while it imports" if process.returncode < 0 or before_caught else "a storm of signals"

    def _break_disk(self, replicas):
        call, error = self._choose.choice(list(CALLS)), self._choose.choice(ERRORS)
        path = "*.weights.h5" if call == "rename" else "*/.tmp-*"
        fault = f"{call},{error},{path},{self._choose.randrange(1, CALLS[call] + 1)},0"
        process = self._start(self._directory, replicas, "--fault", fault, LD_PRELOAD=str(self._shim))
        _, errors = process.communicate()
        if process.returncode == 0:
            return None
        said = errors.strip().splitlines()[-1]
        assert process.returncode == 1 and "CheckpointWriteError" in said and os.strerror(error) in said, (fault, errors)
        assert not list(self._directory.glob(".tmp-*"))
        return f"{errno.errorcode[error]} of {call}"

    def _wait_for_saves(self, process):
        saves, newest = self._choose.randrange(4), max(self._visible(), default="")
        return self._wait_for(lambda: sum(name > newest for name in self._visible()) >= saves, process)

    def _wait_for(self, condition, process):
        """Returns whether a condition became true while the process ran."""
        while not condition():
            if process.poll() is not None:
                assert process.returncode == 0, process.communicate()
                return False
            time.sleep(0.0005)
        return True

    def _visible(self):
        return sorted(path.name for path in self._directory.glob("[!.]*"))

    def _look(self):
        """Verifies all checkpoints. Returns the name of the newest."""
        for name in self._visible():
            assert TEMPLATE.format(batch=files.verify(str(self._directory / name)).batch) == name
        return max(self._visible(), default="")

    def _compare(self, name):
        if self._replicas == [0]:
            assert_same_weights(self._whole / name, self._directory / name)
            return
        with h5py.File(self._whole / name) as one, h5py.File(self._directory / name) as other:

            def compare(path, node):
                if isinstance(node, h5py.Dataset) and not path.startswith("global_step"):
                    np.testing.assert_allclose(other[path][()], node[()], rtol=0, atol=1e-12, err_msg=path)

            one.visititems(compare)


def main():
    parser = argparse.ArgumentParser(description="Ends trainings again and again, and looks at what is left.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="names the run: the same one makes the same choices")
    args = parser.parse_args()
    choose, seen = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        shim = compile_shim("io_errors", Path(directory)) if compiler() else None
        for name, replicas in {"one": [0], "many": [1, 2, 4]}.items():
            training = Training(Path(directory) / name, replicas, args.rounds // 2, choose, shim)
            training.run()
            seen += training.seen
    print(f"seed {args.seed}: {seen.total()} rounds, each from the newest checkpoint, all with the right end: {dict(seen)}")


if __name__ == "__main__":
    main()
