"""Trains on ten batches, and saves after each.

python tests/programs/save_each_batch.py TEMPLATE
"""

import sys

from small import fit, small_model

from callbacks import GlobalStepCheckpoint

if __name__ == "__main__":
    fit(small_model(), GlobalStepCheckpoint(sys.argv[1], save_freq=1))
