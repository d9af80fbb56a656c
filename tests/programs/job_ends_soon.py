"""Runs the recipe of MNIST in a job that ends nine seconds after the start of the run, whatever the speed of the machine.

python -m tests.programs.job_ends_soon FLAGS...
"""

import os
import time

from callbacks.preemption import JOB_END
from recipes import mnist
from recipes.common.run import run

if __name__ == "__main__":
    os.environ[JOB_END] = str(int(time.time()) + 9)
    run(mnist.main)
