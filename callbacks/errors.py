"""Errors whose messages are for the user: one line with the rule, what was received and what to do."""


class InputError(ValueError):
    """An argument is wrong: a template, a flag, a directory, a file of another model.

    Raised before anything is trained or written, so earlier files stay as they are.
    """


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. The message names the file and the cause; earlier checkpoints are intact."""


class CheckpointReadError(OSError):
    """The disk failed while a checkpoint was read. The message names the file and the cause; the model is as it was before."""

    @classmethod
    def of(cls, path: str, error: OSError) -> "CheckpointReadError":
        """Returns the error for a failed read of a checkpoint."""
        cause = one_line(error.strerror or error)
        return cls(f"Could not read the checkpoint {path}: {cause}. It is not changed. Start again when the disk works.")


class DirectoryLost(RuntimeError):
    """The directory of the checkpoints was deleted, moved or unmounted during training."""


class EventWriteError(OSError):
    """TensorBoard's events could not be written during training. The message names the directory and the cause."""


def one_line(error: object) -> str:
    """Returns an error's message on one line of at most 300 characters, without control characters.

    The message may quote a file that anybody has written.
    """
    return printable((" ".join(str(error).split()) or type(error).__name__)[:300])


def printable(text: str) -> str:
    """Returns a text with `?` in place of characters that change a terminal, or that it cannot show."""
    return "".join(each if each.isprintable() else "?" for each in text)
