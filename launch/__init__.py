"""Starts the ranks of a run, watches over them, and ends and starts them together: `python -m launch`."""
