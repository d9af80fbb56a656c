"""What the launcher's processes tell each other, and how it becomes a line of JSON and back.

| message | from | to |
|---|---|---|
| `Hello`, `NodeInfo` | a node that joins | node 0 |
| `Endpoint`, `Refused` | node 0 | a node that joins |
| `Start`, `SendSignal`, `EndRanks` | coordinator, through a node worker where the node is another one | agent |
| `Leave` | coordinator | node worker |
| `RankExited`, `RankStalled`, `Notice`, `AttemptEnded`, `NodeLost` | agent, through a node worker | coordinator |
| `SignalReceived` | node worker | coordinator |

A message that is read back has exactly the fields of its class, with values of their types; anything else is a `ValueError`.
"""

import dataclasses
import enum
import json
import math
import signal
import types
import typing
from dataclasses import dataclass
from typing import Any

from launch.world import WorldSpec


@dataclass(frozen=True)
class Hello:
    """A node asks where to talk to node 0.

    Args:
        node: its number.
    """

    node: int


@dataclass(frozen=True)
class Endpoint:
    """Where node 0 talks to the other nodes.

    Args:
        port: on the address that was called.
    """

    port: int


@dataclass(frozen=True)
class Refused:
    """The caller has another secret. It cannot verify this message, which tells it so."""


@dataclass(frozen=True)
class NodeInfo:
    """What a node is about to start. All nodes have to agree on the first four.

    Args:
        nodes, per_node: nodes of the run, and ranks on each.
        command: of each rank; the program without its folder.
        run_id: the run's name, if this node was given one.
        node: the number of the node.
        host: the name of its host.
        worker_ports: a port for each of its ranks, for `TF_CONFIG`.
        interface: the network interface on which it reaches node 0.
    """

    nodes: int
    per_node: int
    command: tuple[str, ...]
    run_id: str | None
    node: int
    host: str
    worker_ports: tuple[int, ...]
    interface: str


@dataclass(frozen=True)
class Start:
    """Start all ranks of the node.

    Args:
        world: the run.
        stall_timeout: seconds without progress after which a rank is reported; None: never.
        interval: seconds between two looks at the progress.
    """

    world: WorldSpec
    stall_timeout: float | None
    interval: float


@dataclass(frozen=True)
class SendSignal:
    """Send a signal to each rank; the ranks may save."""

    number: signal.Signals


@dataclass(frozen=True)
class EndRanks:
    """End all ranks and what they started: with this signal first, with SIGKILL soon after."""

    number: signal.Signals


@dataclass(frozen=True)
class Leave:
    """The run is over.

    Args:
        code: the exit code of every launcher.
        why: a line for the user; empty if there is nothing to say.
    """

    code: int
    why: str


@dataclass(frozen=True)
class ExitRecord:
    """How a rank ended.

    Args:
        rank: which.
        code: as in `subprocess`: negative for a signal.
        batch: the last batch that it reported.
        log: the file with its output.
        lost: bytes of its output that the file lacks.
    """

    rank: int
    code: int
    batch: int | None
    log: str
    lost: int


@dataclass(frozen=True)
class RankExited:
    """A rank ended.

    Args:
        record: how.
        out_of_memory: the kernel killed a process for want of memory in this attempt.
        tail: the end of the rank's output; empty if it succeeded.
    """

    record: ExitRecord
    out_of_memory: bool
    tail: str


@dataclass(frozen=True)
class RankStalled:
    """A rank made no progress for too long.

    Args:
        rank: which.
        batch: the last batch that it reported.
        stopped: it was stopped by SIGSTOP.
    """

    rank: int
    batch: int | None
    stopped: bool


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, and that changes nothing."""

    text: str


@dataclass(frozen=True)
class AttemptEnded:
    """Every process of this node's ranks is dead.

    Args:
        records: one for each rank.
    """

    records: tuple[ExitRecord, ...]


@dataclass(frozen=True)
class NodeLost:
    """The node can run nothing any more.

    Args:
        why: the cause.
    """

    why: str


@dataclass(frozen=True)
class SignalReceived:
    """The launcher of another node received a signal."""

    number: signal.Signals


Order = Start | SendSignal | EndRanks | Leave
Event = RankExited | RankStalled | Notice | AttemptEnded | NodeLost | SignalReceived
Message = Hello | Endpoint | Refused | NodeInfo | Order | Event

_KINDS = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """The message as one line of JSON, without its end."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode()


def decode(line: bytes) -> Message:
    """Reads a message back.

    Raises:
        ValueError: if it is none.
    """
    try:
        fields = json.loads(line)
        return _build(_KINDS[fields.pop("kind")], fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a message of the launcher: {error}") from None


def _build(kind: Any, value: Any) -> Any:
    """The value as the type that a field has."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _build(arguments[0], value)  # every union here is `X | None`
    if origin is tuple:
        every = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        _expect(type(value) is list and len(value) == len(every), kind, value)
        return tuple(_build(each, part) for each, part in zip(every, value, strict=True))
    if dataclasses.is_dataclass(kind):
        build: Any = kind
        hints = typing.get_type_hints(kind)
        _expect(type(value) is dict and value.keys() == hints.keys(), kind, value)
        return build(**{name: _build(hint, value[name]) for name, hint in hints.items()})
    if isinstance(kind, enum.EnumType):
        return kind(value)
    if kind is float:
        _expect(type(value) in (int, float) and math.isfinite(value), kind, value)
        return float(value)
    _expect(type(value) is kind, kind, value)
    return value


def _expect(true, kind, value):
    if not true:
        raise ValueError(f"expected {kind}. Received: {str(value)[:100]}")
