"""Starts the ranks of a run, monitors them, and ends and restarts them together: `python -m launch`."""
