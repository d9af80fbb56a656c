"""What the launcher says. Nothing here raises, and nothing waits for long: ranks depend on this process.

A terminal may be closed, stopped or full, and a reader may be gone. Then the text is lost and the run goes on. Escape sequences and
other control characters are left out, because texts contain what ranks and other hosts sent.
"""

import contextlib
import os
import re
import select

PATIENCE = 5.0  # seconds for a terminal that stands still
OUT, ERR = 1, 2

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # all but tab and newline
_stuck: set[int] = set()  # descriptors that took nothing last time


def say(text: str) -> None:
    """Says something in one line of standard error, with the launcher's name in front."""
    show(f"[launch] {text}")


def show(text: str, descriptor: int = ERR) -> None:
    """Writes a text and a newline.

    Args:
        text: lines; control characters are left out.
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
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]  # as much as a writable pipe takes at once


def printable(text: str) -> str:
    """The text without escape sequences and control characters.

    Example:
        >>> printable("\\x1b[31mred\\x1b[0m")
        'red'
    """
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def open_standard_descriptors() -> None:
    """Opens those of 0, 1 and 2 that are closed: a socket must not get such a number, and then what is said there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
