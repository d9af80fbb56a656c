"""Exchanges thousands of messages between two ranks; the chief prints the growth of its memory in kB over the second half.

python -m launch --nproc-per-node 2 tests/programs/many_messages.py
"""

import os
from pathlib import Path

import tensorflow as tf

from recipes.common.distribution.multiworker_ranks import MultiWorkerRanks

MESSAGES = 4000


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> None:
    ranks = MultiWorkerRanks()
    average = tf.function(lambda value: ranks.average([tf.fill([100], value)], "grads"))
    for _ in range(2):
        before = memory()
        for i in range(MESSAGES // 2):
            assert ranks.gather_numbers([i, ranks.rank]).tolist() == [[i, rank] for rank in range(ranks.size)]
            (mean,) = average(tf.constant(float(i + 2 * ranks.rank)))
            assert (mean.numpy() == i + 1).all()
    if ranks.is_chief:
        print("grew by", memory() - before, flush=True)


if __name__ == "__main__":
    main()
