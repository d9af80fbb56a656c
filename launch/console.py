"""The output of the launcher. Functions here never raise and never block for long, because ranks depend on this process.

If the terminal is closed, stopped or full, the text is lost and the run continues. Escape sequences and other control characters
are removed, because the text may come from ranks and other hosts.
"""

import contextlib
import os
import re
import select

PATIENCE = 5.0  # seconds to wait for a terminal that accepts nothing
OUT, ERR = 1, 2

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # all but tab and newline
_stuck: set[int] = set()  # descriptors that accepted nothing last time


def say(text: str) -> None:
    """Writes one line to standard error, prefixed with the launcher's name."""
    show(f"[launch] {text}")


def show(text: str, descriptor: int = ERR) -> None:
    """Writes a text and a newline.

    Args:
        text: one or more lines; control characters are removed.
        descriptor: `OUT` or `ERR`.
    """
    rest = (printable(text) + "\n").encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while rest:
            if not poll.poll(0 if descriptor in _stuck else PATIENCE * 1000):
                _stuck.add(descriptor)
                return
            _stuck.discard(descriptor)
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]  # as much as a writable pipe accepts at once


def printable(text: str) -> str:
    """Returns the text without escape sequences and control characters.

    Example:
        >>> printable("\\x1b[31mred\\x1b[0m")
        'red'
    """
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def open_standard_descriptors() -> None:
    """Opens descriptors 0, 1 and 2 if they are closed, so that no socket gets such a number and receives the output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
