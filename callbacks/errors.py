"""The errors that are written for the reader: one line, with the rule, what was received and what to do."""


class InputError(ValueError):
    """Something that the caller gave is wrong: a template, a flag, a directory, a file of another model.

    Raised before anything is trained or written, so nothing that was saved before is touched.
    """


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. Names the file and the cause; earlier checkpoints are intact."""


class EventWriteError(OSError):
    """TensorBoard's events could not be written in the middle of a run. Names the directory and the cause."""


def one_line(error: object) -> str:
    """What an error says about a file of whatever origin, on one line of bounded length and without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(each if each.isprintable() else "?" for each in text[:300])
