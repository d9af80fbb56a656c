"""Training recipes: plain scripts, each started as `python -m recipes.NAME`. `python -m recipes` lists them."""

import sys

if sys.argv[:1] == ["-m"] and "recipes." in sys.orig_argv[-len(sys.argv)]:
    # Python is about to run `-m recipes.NAME`, and has not read NAME yet. An import from elsewhere does nothing.
    from recipes._start import start

    start()
