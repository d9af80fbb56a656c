"""Benchmarks, started by `make bench`. Times differ between machines; compare the ratios."""
