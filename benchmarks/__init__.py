"""Measures, side by side in one run: `make bench`. Times differ between machines; read the ratios."""
