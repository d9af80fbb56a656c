"""A rank that writes 2000 lines, each in two pieces and on both outputs, and one line without an end.

python tests/programs/pieces_of_lines.py
"""

import os

if __name__ == "__main__":
    for n in range(2000):
        os.write(1, b"x" * (n % 300))
        os.write(2, b"y%d\n" % n)
    os.write(1, b"no end")
