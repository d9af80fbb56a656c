"""The launcher on a machine that a folder describes: `bound_launcher.py FOLDER [the launcher's arguments]`."""

import sys
from pathlib import Path

from launch.__main__ import main
from launch.command_line import numa

numa.ROOT = Path(sys.argv[1])
sys.exit(main(sys.argv[2:]))
