"""In the place of pip: appends its arguments to the file PIP_WAS_ASKED.

python -m pip ARG...
"""

import os
import sys

if __name__ == "__main__":
    with open(os.environ["PIP_WAS_ASKED"], "a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
