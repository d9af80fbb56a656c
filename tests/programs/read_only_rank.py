"""Trains the recipe in ranks; rank 1 sees the directory read-only, with a trace of its system calls in DIRECTORY.trace.

python tests/programs/read_only_rank.py DIRECTORY FLAGS...
"""

import os
import sys

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'

if __name__ == "__main__":
    workdir, *flags = sys.argv[1:]
    command = [sys.executable, "-m", "recipes.mnist", "--workdir", workdir, *flags]
    if os.environ["RANK"] == "1":
        trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=%file", "-o", workdir + ".trace"]
        command = ["unshare", "--mount", "sh", "-c", READ_ONLY, workdir, *trace, *command]
    os.execvp(command[0], command)
