"""Training recipes: plain scripts, each started by `python -m recipes.NAME`. `python -m recipes` lists them."""

import sys

if sys.argv[:1] == ["-m"] and "recipes." in sys.orig_argv[-len(sys.argv)]:
    # Python is about to run `-m recipes.NAME`. Any other import of this package does nothing.
    from recipes._start import start

    start()
