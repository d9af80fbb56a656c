"""Runs the recipe on a GPU, and prints how much of the GPU's memory is used, and how much there is, in MiB.

python tests/programs/memory_on_gpu.py FLAGS...
"""

import subprocess
import sys

from recipes.mnist import main

if __name__ == "__main__":
    main(sys.argv[1:])
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits", "--id=0"]
    print("MEMORY", subprocess.run(query, capture_output=True, text=True).stdout)
