"""The messages between the processes of the launcher, and their encoding as lines of JSON.

| message | from | to |
|---|---|---|
| `Hello`, `NodeInfo` | a node that joins | node 0 |
| `Endpoint`, `Refused` | node 0 | a node that joins |
| `Start`, `SendSignal`, `EndRanks` | coordinator, through the node worker of another node | agent |
| `Leave` | coordinator | node worker |
| `RankExited`, `RankStalled`, `Notice`, `AttemptEnded`, `NodeLost` | agent, through the node worker of another node | coordinator |
| `SignalReceived` | node worker | coordinator |

A decoded message has exactly the fields of its class, with values of their types (`launch/limits.py`); anything else raises a
`ValueError`. The receiver checks that a node reports only its own ranks.
"""

import dataclasses
import enum
import json
import math
import signal
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from launch.limits import Command, Count, ExitCode, Name, Number, Port, ReturnCode, RunId, Seconds, Size, Text
from launch.processes import FORWARDED
from launch.world import WorldSpec


@dataclass(frozen=True)
class Hello:
    """A node asks for the endpoint of node 0.

    Args:
        node: the number of the node that asks.
    """

    node: Number


@dataclass(frozen=True)
class Endpoint:
    """The endpoint at which node 0 talks to the other nodes.

    Args:
        port: a port of the address that was called.
    """

    port: Port


@dataclass(frozen=True)
class Refused:
    """The caller has another secret. It learns this because it cannot verify this message."""


@dataclass(frozen=True)
class NodeInfo:
    """What a node is about to start. All nodes must agree on the first four fields.

    Args:
        nodes, per_node: the number of nodes, and of ranks on each node.
        command: the command of each rank, the program without its folder; a long one is abridged, with its SHA-256.
        run_id: the name of the run, if this node was given one.
        node: the number of the node.
        host: the name of its host.
        worker_ports: a port for each rank of the node, for `TF_CONFIG`.
        interface: the network interface over which the node reaches node 0.
    """

    nodes: Size
    per_node: Size
    command: Command
    run_id: RunId | None
    node: Number
    host: Name
    worker_ports: tuple[Port, ...]
    interface: Name


@dataclass(frozen=True)
class Start:
    """Start all ranks of the node.

    Args:
        world: the run.
        stall_timeout: seconds without progress after which the agent reports a rank; None: never.
        interval: seconds between two checks of the progress.
    """

    world: WorldSpec
    stall_timeout: Seconds | None
    interval: Seconds


@dataclass(frozen=True)
class SendSignal:
    """Send a signal to each rank, which may then save and exit."""

    number: signal.Signals


@dataclass(frozen=True)
class EndRanks:
    """End all ranks and the processes that they started: first with this signal, soon after with SIGKILL."""

    number: signal.Signals


@dataclass(frozen=True)
class Leave:
    """The run is over.

    Args:
        code: the exit code of every launcher.
        why: one line for the user; may be empty.
    """

    code: ExitCode
    why: Text


@dataclass(frozen=True)
class ExitRecord:
    """How a rank ended.

    Args:
        rank: the rank.
        code: the return code as in `subprocess`, negative for a signal.
        batch: the last batch that the rank reported.
        log: the file with the output of the rank.
        lost: the number of bytes of the output that the file lacks.
    """

    rank: Number
    code: ReturnCode
    batch: Count | None
    log: Text
    lost: Count


@dataclass(frozen=True)
class RankExited:
    """A rank ended.

    Args:
        record: how the rank ended.
        out_of_memory: whether the kernel killed a process in this attempt because memory ran out.
        tail: the end of the rank's output; empty if the rank succeeded.
    """

    record: ExitRecord
    out_of_memory: bool
    tail: Text


@dataclass(frozen=True)
class RankStalled:
    """A rank was stopped, or made no progress, for too long.

    Args:
        rank: the rank.
        batch: the last batch that the rank reported.
        stopped: whether SIGSTOP has stopped the rank.
        seconds: for how long.
    """

    rank: Number
    batch: Count | None
    stopped: bool
    seconds: Seconds


@dataclass(frozen=True)
class Notice:
    """Information for the user that does not change the run."""

    text: Text


@dataclass(frozen=True)
class AttemptEnded:
    """All ranks of the node, and all processes that they started, have ended.

    Args:
        records: one record for each rank.
    """

    records: tuple[ExitRecord, ...]


@dataclass(frozen=True)
class NodeLost:
    """The node can no longer run ranks.

    Args:
        why: the cause.
    """

    why: Text


@dataclass(frozen=True)
class SignalReceived:
    """The launcher of another node received a signal."""

    number: Annotated[signal.Signals, FORWARDED]


Order = Start | SendSignal | EndRanks | Leave
Event = RankExited | RankStalled | Notice | AttemptEnded | NodeLost | SignalReceived
Message = Hello | Endpoint | Refused | NodeInfo | Order | Event

_KINDS = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """Returns the message as one line of JSON, without the newline."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode()


def decode(line: bytes) -> Message:
    """Returns the message that a line contains.

    Raises:
        ValueError: if the line is not a message.
    """
    try:
        fields = json.loads(line)
        return _build(_KINDS[fields.pop("kind")], fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a message of the launcher: {error}") from None


def _build(kind: Any, value: Any) -> Any:
    """Returns the value, converted to the type of a field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        built = _build(arguments[0], value)
        _expect(all(built in limit for limit in arguments[1:]), kind, value)
        return built
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _build(arguments[0], value)  # every union here is `X | None`
    if origin is tuple:
        every = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        _expect(type(value) is list and len(value) == len(every), kind, value)
        return tuple(_build(each, part) for each, part in zip(every, value, strict=True))
    if dataclasses.is_dataclass(kind):
        build: Any = kind
        hints = typing.get_type_hints(kind, include_extras=True)
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
