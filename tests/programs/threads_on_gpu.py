"""Trains the recipe on a GPU, and prints the names of this process's threads.

python tests/programs/threads_on_gpu.py FLAGS...
"""

import sys
from pathlib import Path

from recipes.mnist import main

if __name__ == "__main__":
    main(sys.argv[1:])
    print("THREADS", sorted({path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}))
