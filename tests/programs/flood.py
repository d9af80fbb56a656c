"""A rank that writes blocks of 100 kB as fast as it can, and the seconds that this took to a file.

python tests/programs/flood.py BLOCKS
"""

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    block = b"".join(b"%06d %s\n" % (n, b"z" * 92) for n in range(1000))
    began = time.monotonic()
    for _ in range(int(sys.argv[1])):
        os.write(1, block)
    Path(f"took-{os.environ['RANK']}").write_text(str(time.monotonic() - began))
