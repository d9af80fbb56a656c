"""Runs the recipe once for each line of standard input, a list of its flags in JSON, each time in a new process.

Prints one line for each: exit code, standard output and standard error in JSON. Imports happen only once.
"""

import json
import os
import sys
import tempfile

from recipes._start import start

start()  # as `python -m recipes.mnist` does before it imports TensorFlow

from recipes.common.run import run
from recipes.mnist import main


def run_recipe(flags, out, errors):
    """Starts the recipe with its output in two files. Returns its exit code."""
    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        run(lambda: main(flags))
        sys.exit(0)  # like a separate process
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            code = run_recipe(json.loads(line), out, errors)
            out.seek(0)
            errors.seek(0)
            print(json.dumps([code, out.read(), errors.read()]), flush=True)
