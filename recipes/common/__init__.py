"""Code that all recipes share.

- `arguments`: the flags. `learning_rate`: schedules.
- `data`: random-access data sets, and the batches of an epoch.
- `distribution`: devices and ranks, and how they share a global batch.
- `run`: callbacks, output and exit codes of a run.

Imports point one way: `run` -> `data` -> `distribution`.
"""
