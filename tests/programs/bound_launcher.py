"""The launcher on a machine that a folder describes: `bound_launcher.py FOLDER [the launcher's arguments]`."""

import sys
from pathlib import Path

from launch import numa
from launch.__main__ import main

numa.ROOT = Path(sys.argv[1])
sys.exit(main(sys.argv[2:]))
