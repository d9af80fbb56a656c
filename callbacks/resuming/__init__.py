"""Finds the newest intact checkpoint and restores it before the first batch."""
