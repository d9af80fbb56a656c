"""Small streams and files of tokens."""

import numpy as np

from recipes.common.data.tokens import Windows

VOCABULARY = 11


def stream(size, context=4):
    """Returns windows whose tokens are their positions, modulo the size of the vocabulary."""
    return Windows(np.arange(size, dtype="uint8") % VOCABULARY, context, VOCABULARY, "a stream")


def token_file(path, values):
    """Writes a file of tokens. Returns its path."""
    np.array(values, "<u2").tofile(path)
    return str(path)
