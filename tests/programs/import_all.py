"""Imports all modules of a package one by one, and reports what each import changes in the process.

Prints JSON: the imported modules, and module -> changed parts of the process.

python tests/programs/import_all.py PACKAGE MODULE_TO_IMPORT_FIRST...
"""

import importlib
import json
import os
import pkgutil
import signal
import sys


def surroundings():
    wakeup = signal.set_wakeup_fd(-1)
    return {
        "handlers": {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "files": {number: os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)},
        "wakeup": wakeup,
        "environment": dict(os.environ),
        "streams": [id(stream) for stream in (sys.stdin, sys.stdout, sys.stderr, sys.excepthook)],
    }


def import_and_compare(name, before):
    """Returns the changed parts of the process; None if the module needs Horovod, which is not installed."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "horovod":
            raise
        return None
    after = surroundings()
    different = [part for part in before if after[part] != before[part]]
    before.update(after)
    return different


if __name__ == "__main__":
    package, *first = sys.argv[1:]
    for name in first:
        importlib.import_module(name)
    before = surroundings()
    found = {package: import_and_compare(package, before)}
    for module in pkgutil.walk_packages(sys.modules[package].__path__, package + "."):
        found[module.name] = import_and_compare(module.name, before)
    imported = {name: different for name, different in found.items() if different is not None}
    print(json.dumps([list(imported), {name: different for name, different in imported.items() if different}]))
