"""Runs the recipe on a GPU, and prints the used and the total memory of the GPU in MiB.

python tests/programs/memory_on_gpu.py FLAGS...
"""

import subprocess
import sys

from recipes.mnist import main

if __name__ == "__main__":
    main(sys.argv[1:])
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits", "--id=0"]
    print("MEMORY", subprocess.run(query, capture_output=True, text=True).stdout)
