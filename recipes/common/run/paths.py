"""Short paths for messages."""

import os


def from_here(path: str) -> str:
    """Returns a path below the working directory as a relative path, and any other path unchanged.

    >>> from_here(os.path.abspath("runs/mnist"))
    'runs/mnist'
    """
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
