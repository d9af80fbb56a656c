"""Ranks exchange data only: any plain value is decoded unchanged, and anything else is refused and not executed."""

import contextlib
import json
import math
import os
import pickle
import random
import struct

import ml_dtypes
import numpy as np
import pytest

from callbacks.plain_data import decode, encode

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", ">f4", ">i8", "S5", "U3", "M8[ns]", "m8[s]",
    *(getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_keras():
    """Skips the fresh session, which takes a sixth of a second, because no test here creates a model."""


def same_array(one, other):
    return type(one) is type(other) and (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 10**30, 0.1, -0.0, 5e-324, math.inf, -math.inf, "", "grün\n\0", "\udcff", [], {}, [[], {}],
        {"a": [1, {"b": None}], "": 2.5, "array": ["<f4", [3]], "dict": {}, "scalar": "x"},
    ],
)  # fmt: skip
def test_plain_values_are_decoded_unchanged(value):
    found = decode(encode(value))
    assert found == value and type(found) is type(value)
    assert str(found) == str(value)  # -0.0 too


def test_nan_is_decoded_and_tuples_become_lists():
    assert math.isnan(decode(encode([math.nan]))[0])
    assert decode(encode({"a": (1, (2, "b"))})) == {"a": [1, [2, "b"]]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_decoded_bit_for_bit_and_are_writable(dtype):
    for shape in [(), (1,), (0,), (3, 0, 2), (4, 3)]:
        sent = np.arange(math.prod(shape)).reshape(shape).astype("uint8").astype(dtype)
        found, transposed, after = decode(encode([sent, sent.T, 7]))
        assert same_array(found, sent) and same_array(transposed, sent.T) and after == 7
        found[...] = sent


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_scalars_keep_their_type(dtype):
    one = np.ones((), "uint8").astype(dtype)[()]
    assert same_array(decode(encode({"x": one}))["x"], one)


def test_views_and_several_arrays_keep_their_positions():
    base = np.arange(24.0).reshape(4, 6)
    value = {
        "b": base[::2, ::-1],
        "d": [np.arange(9.0)[::2], np.arange(9, dtype="uint8")[::-2]],
        "a": [np.float32(0.5), base.T.astype("int16")],
        "c": 1,
    }
    found = decode(encode(value))
    assert list(found) == ["b", "d", "a", "c"]
    np.testing.assert_array_equal(found["b"], value["b"])
    np.testing.assert_array_equal(found["a"][1], value["a"][1])
    assert [each.tolist() for each in found["d"]] == [[0.0, 2.0, 4.0, 6.0, 8.0], [8, 6, 4, 2, 0]]


def test_a_large_array_takes_its_own_size():
    assert len(encode(np.zeros(1_000_000, "float32"))) < 4_000_100


class Opaque:
    pass


@pytest.mark.parametrize(
    "value",
    [
        Opaque(), {1: 2}, {1}, b"bytes", [len], np.array([Opaque()]), np.zeros(2, [("a", "f4")]), np.zeros(2, "V3"),
        ValueError("x"), 1j,
    ],
)  # fmt: skip
def test_data_that_is_not_plain_is_refused_when_it_is_sent(value):
    with pytest.raises(TypeError, match="Plain data") as caught:
        encode({"x": value})
    assert "\n" not in str(caught.value)


def test_data_that_is_nested_too_deeply_is_refused_when_it_is_sent():
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="144 levels"):
        encode(endless)


def message(tree, contents=b""):
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return struct.pack(">8s2Q", b"PLAIN\0\0\1", len(text), len(contents)) + text + contents


def refused(content):
    with pytest.raises(ValueError) as caught:
        decode(content)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_messages_of_these_tests_are_read_when_they_are_right():
    assert decode(message({"array": ["<f4", [2]]}, bytes(8))).tolist() == [0, 0]


@pytest.mark.parametrize(
    "tree, contents",
    [
        ({"array": ["<f4", [2]]}, bytes(7)),
        ({"array": ["<f4", [2]]}, bytes(9)),
        ({"array": ["<f4", [10**18]]}, b""),
        ({"array": ["<f4", [10**400]]}, b""),
        ({"array": ["<f4", [0, 10**30]]}, b""),
        ({"array": ["<f4", [0, 2**62, 2**62]]}, b""),
        ({"array": ["<f4", [2**62] * 60]}, b""),
        ({"array": ["<f4", [-1]]}, bytes(4)),
        ({"array": ["<f4", [-1, -1]]}, bytes(4)),
        ({"array": ["<f4", [True]]}, bytes(4)),
        ({"array": ["<f4", [1.0]]}, bytes(4)),
        ({"array": ["<f4", [1] * 1000]}, bytes(4)),
        ({"array": ["<f4"]}, bytes(4)),
        ({"array": [["<f4"], [1]]}, bytes(4)),
        ({"array": ["|O", [1]]}, bytes(8)),
        ({"array": ["O", [1]]}, bytes(8)),
        ({"scalar": "|O8"}, bytes(8)),
        ({"scalar": "object"}, bytes(8)),
        ({"scalar": "f4,O"}, bytes(12)),
        ({"scalar": "<f3"}, bytes(8)),
        ({"scalar": "|V8"}, bytes(8)),
        ({"scalar": "<U0"}, b""),
        ({"scalar": "<U1"}, b"\xff" * 4),
        ({"array": [">U2", [2, 1]]}, bytes(12) + b"\x00\x11\x00\x00"),
        ({"scalar": "<U99999999999999999999"}, b""),
        ({"scalar": "<M8[nonsense]"}, bytes(8)),
        ({"scalar": "bfloat17"}, bytes(2)),
        ({"scalar": "<f\u0664"}, bytes(4)),
        ({"scalar": None}, b""),
        ({"dict": []}, b""),
        ({"dict": {}, "scalar": "<f4"}, bytes(4)),
        ({"a": 1}, b""),
        ({}, b""),
        (b"", b""),
        (b"[1, 2", b""),
        (b"\xff\xfe", b""),
        (b"9" * 10_000, b""),
        (b"__import__('os')", b""),
        (b"[" * 100_000, b""),
        (b"[" * 100_000 + b"]" * 100_000, b""),
        (b"[" * 200 + b"]" * 200, b""),
        (b'{"dict":{"a":' * 200 + b"1" + b"}}" * 200, b""),
    ],
)
def test_hostile_messages_are_refused(tree, contents):
    refused(message(tree, contents))


def test_truncated_and_longer_messages_are_refused():
    whole = encode({"a": [1, 2.5, "x"], "b": np.arange(3), "c": np.float32(1)})
    for size in range(len(whole)):
        refused(whole[:size])
    refused(whole + b"\0")
    refused(whole + whole)


def test_sizes_beyond_the_message_are_refused():
    for sizes in ((2**64 - 1, 2**64 - 1), (0, 2**63), (2**64 - 1, 1)):
        refused(struct.pack(">8s2Q", b"PLAIN\0\0\1", *sizes) + b"null")


def test_random_changes_of_a_message_raise_only_value_errors():
    whole = encode({"a": [1, 2.5, "x"], "b": np.arange(3), "c": np.float32(1), "d": np.array(["ab"]), "e": np.zeros((2, 0))})
    rng = random.Random(0)
    for _ in range(20_000):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(b'0123456789[]{}",:-<|OfUiSM\xff')
        with contextlib.suppress(ValueError):
            decode(bytes(changed))


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_instead_of_a_message_is_not_executed(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        payload = pickle.dumps(Trap(str(tmp_path / f"run-{protocol}")), protocol)
        refused(payload)
        refused(message(payload))
        refused(message({"array": ["|O", [1]]}, payload))
    assert not list(tmp_path.iterdir())
    pickle.loads(payload)
    assert list(tmp_path.iterdir())  # it would have been
