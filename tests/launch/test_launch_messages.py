"""Messages between the launcher's processes are decoded unchanged, and other data is refused."""

import json
import signal

import pytest

from launch.network.messages import (
    AttemptEnded,
    Endpoint,
    ExitRecord,
    Leave,
    NodeInfo,
    RankExited,
    RankStalled,
    SendSignal,
    Start,
    decode,
    encode,
)
from launch.world import WorldSpec

WORLD = WorldSpec(2, 1, "night", "node0", 29500, ("10.0.0.1", "10.0.0.2"), ((1,), (2,)), ("eth0", "eth0"), ("10.0.0.1", 7), 3)
RECORD = ExitRecord(rank=1, code=-9, batch=None, log="runs/logs/a/rank-1.log", lost=0)


@pytest.mark.parametrize(
    "message",
    [
        Start(WORLD, None, 0.1),
        SendSignal(signal.SIGUSR1),
        RankStalled(1, None, True, 5.0),
        RankExited(RECORD, True, "Traceback\n\x1b\udcff"),
        AttemptEnded((RECORD, RECORD)),
        NodeInfo(2, 1, "python -u \udcff", None, 1, "node1", (1, 2), ""),
        Leave(2, ""),
    ],
)
def test_a_message_survives_encoding_in_one_line(message):
    line = encode(message)
    assert b"\n" not in line
    assert decode(line) == message


ENDPOINT = {"kind": "Endpoint", "port": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"kind": "Endpoint", "port": 1',
        b"[" * 100_000,
        b'{"kind": "Endpoint", "port": ' + b"1" * 5000 + b"}",
        b'{"kind": "Leave", "code": NaN, "why": ""}',
        *(json.dumps(ENDPOINT | change).encode() for change in (
            {"kind": "Other"},
            {"kind": ["Endpoint"]},
            {"kind": "WorldSpec"},
            {"port": "1"},
            {"port": 1.0},
            {"port": True},
            {"port": None},
            {"more": 1},
        )),
        json.dumps({"kind": "Endpoint"}).encode(),
        json.dumps({"kind": "SendSignal", "number": 1000}).encode(),
        json.dumps({"kind": "AttemptEnded", "records": [{"rank": 1}]}).encode(),
        json.dumps({"kind": "AttemptEnded", "records": {"rank": 1}}).encode(),
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)  # fmt: skip
def test_data_that_is_not_a_message_is_refused(line):
    assert decode(json.dumps(ENDPOINT).encode()) == Endpoint(1)
    with pytest.raises(ValueError, match="not a message of the launcher"):
        decode(line)
