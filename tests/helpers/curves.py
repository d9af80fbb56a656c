"""Reads the directory of a run with TensorBoard's own reader."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0}


def curves(directory):
    """Returns what EventAccumulator reads: (run, tag) -> [(step, value), ...]."""
    found = {}
    for run in sorted(path for path in directory.iterdir() if path.is_dir()):
        reader = EventAccumulator(str(run), EVERYTHING).Reload()
        for tag in reader.Tags()["scalars"]:
            found[run.name, tag] = [(e.step, e.value) for e in reader.Scalars(tag)]
    return found
