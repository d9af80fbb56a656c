"""A rank that reports a batch, and fails.

python tests/programs/failing_at_a_batch.py BATCH
"""

import sys

from launch.world import report_progress

if __name__ == "__main__":
    print("life")
    report_progress(int(sys.argv[1]))
    sys.exit(3)
