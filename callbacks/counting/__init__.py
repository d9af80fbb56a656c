"""Counts batches, steps and samples, and keeps the position in the data."""
