"""Paths as a reader of the terminal would type them."""

import os


def from_here(path: str) -> str:
    """Returns a path relative to the working directory where it is below that, else as it is.

    >>> from_here(os.path.abspath("runs/mnist"))
    'runs/mnist'
    """
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
