"""The values that the fields of a message may have. A field is `Annotated` with the container of its values."""

import re
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Between:
    """The numbers between two others, both included."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most


@dataclass(frozen=True)
class Like:
    """The texts that match a regular expression."""

    pattern: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None


LONGEST_TEXT = 1 << 17  # characters
RUN_ID = Like(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # names a folder

Port = Annotated[int, range(1, 1 << 16)]
Number = Annotated[int, range(1 << 20)]  # of a node or a rank
Size = Annotated[int, range(1, 1 << 20)]  # number of nodes, or of ranks on a node
Count = Annotated[int, range(-(1 << 70), 1 << 70)]  # what a rank reports, or bytes
ExitCode = Annotated[int, range(256)]
ReturnCode = Annotated[int, range(-64, 256)]  # as in `subprocess`, negative for a signal
Seconds = Annotated[float, Between(0, 1e18)]
RunId = Annotated[str, RUN_ID]
Name = Annotated[str, Like("[^\0-\x1f\x7f]{0,255}")]  # of a host, an address or a network interface
Text = Annotated[str, Like(f".{{0,{LONGEST_TEXT}}}")]
Command = Annotated[str, Like(".{0,1200}")]  # as `rendezvous.abridged` writes it
