"""Parses the header of a checkpoint, its JSON part, and checks the types in it."""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from callbacks.counts import Counts
from callbacks.errors import InputError
from callbacks.template import COUNTERS, Template

_LARGEST = 1 << 63
_LONGEST = 255  # characters of a template, at most the length of a file name
_WORDS, _MOST = 625, 1 << 32  # of the state of Python's `random`: 624 words, and the place of the next one
_TYPES = {  # key -> type, and whether every file has it
    "template": (str, True),
    "counts": (dict, True),
    "logs": (dict, True),
    "metrics": (dict, True),
    "callbacks": (dict, True),
    "stopped": (bool, True),
    "hook": (str, False),
    "finite": (bool, False),
    "learning_rates": (dict, False),
    "trainable": (dict, False),
}


def parse_header(content: bytes, path: str, formats: tuple[int, int]) -> dict[str, Any]:
    """Parses and checks a header.

    Args:
        content: the JSON text.
        path: the path of the checkpoint, for messages.
        formats: the versions of the format that can be read.

    Raises:
        ValueError: if the text is not a valid header.
        InputError: if it has another version.
    """
    header = json.loads(content)
    _expect(header, "format", int)
    if header["format"] not in formats:
        raise InputError(
            f"{path} has format {header['format']!s:.20}, but this version of the callbacks reads formats "
            f"{' and '.join(map(str, formats))}. Read it with the version that wrote it."
        )
    check_header(header)
    return header


def check_header(header: Any) -> None:
    """Checks the types of everything that a resume reads from a header of format 1 or 2. Other keys are ignored.

    Raises:
        ValueError: if a part is missing or has another type. The message names it.
    """
    for key, (kind, is_needed) in _TYPES.items():
        if is_needed or key in header:
            _expect(header, key, kind)
    _check_counts(header["counts"])
    _check_template(header["template"])
    if header.get("data") is not None:
        _check_place(header["data"])
    if header["format"] == 1:
        _expect(header, "variables", list)
        _require(all(_is_variable(each[1:]) and isinstance(each[0], str) for each in header["variables"]), "variables")
        return
    _require(all(type(rate) is float for rate in header.get("learning_rates", {}).values()), "learning_rates")
    _require(all(type(flag) is bool for flag in header.get("trainable", {}).values()), "trainable")
    for key, kind in {"variables": dict, "metrics_variables": list, "optimizers": dict, "beside": list}.items():
        _expect(header, key, kind)
    variables = header["variables"]
    _require(all(_is_variable(each[:2]) and isinstance(each[2], str) for each in variables.values()), "variables")
    _require(all(each in variables for each in header["beside"]), "beside")
    _require(all(isinstance(each, str) for each in header["metrics_variables"]), "metrics_variables")
    for each in header["optimizers"].values():
        _expect(each, "built", bool)
        _expect(each, "updates", list)
        _require(all(isinstance(name, str) for name in each["updates"]), "optimizers")


def _check_place(place: Any) -> None:
    """Checks the place in the data (`data_position.Place`)."""
    _require(isinstance(place, dict) and place.keys() <= _PLACE.keys(), "data")
    for key, value in place.items():
        _require(_PLACE[key](value), f"data.{key}")


def _are_seeds(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, list) for each in value))


def _is_random(value: Any) -> bool:
    """Returns whether a value is a state of Python's `random`, as in `random.getstate`."""
    if value is None:
        return True
    version, words, _ = value
    *state, at = words
    return (
        version == 3
        and len(words) == _WORDS
        and all(type(each) is int and 0 <= each < _MOST for each in state)
        and 0 <= at < _WORDS
    )


def _check_counts(counts: dict[str, Any]) -> None:
    for field in fields(Counts):
        if field.name in counts or field.name in COUNTERS:
            _expect(counts, field.name, type(field.default))
            _require(0 <= counts[field.name] < _LARGEST, f"counts.{field.name}")
    _require(counts.keys() <= {field.name for field in fields(Counts)}, "counts")


def _check_template(text: str) -> None:
    _require(len(text) <= _LONGEST, "template")
    try:
        Template(text)
    except InputError as error:
        raise ValueError(str(error)) from None


def _is_variable(parts: Any) -> bool:
    shape, dtype = parts
    return (shape is None or (isinstance(shape, list) and all(map(_is_size, shape)))) and isinstance(dtype, str)


def _is_size(size: Any) -> bool:
    return size is None or (type(size) is int and 0 <= size < _LARGEST)


_PLACE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("created", "used", "drawn", "samples", "epochs"), lambda value: value is not None and _is_size(value)),
    "length": _is_size,
    "seeds": _are_seeds,
    "random": _is_random,
}


def _expect(holder: Any, key: str, kind: type) -> None:
    if not isinstance(holder, dict) or key not in holder:
        raise ValueError(f"its header has no {key}")
    _require(type(holder[key]) is kind, key)


def _require(holds: bool, key: str) -> None:
    if not holds:
        raise ValueError(f"its header has no usable {key}")
