"""What the JSON part of a checkpoint has to look like, before anybody relies on it."""

import json
from dataclasses import fields
from typing import Any

from callbacks.counts import Counts
from callbacks.errors import InputError
from callbacks.template import Template

_LARGEST = 1 << 63
_LONGEST = 255  # characters of a template: a file's name has no more
_TYPES = {  # key -> type, and whether each file has it
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
    """Reads a header, and checks it.

    Args:
        content: the JSON text.
        path: of the checkpoint, for messages.
        formats: the versions that are understood.

    Raises:
        ValueError: if it is none.
        InputError: if it is of another version.
    """
    header = json.loads(content)
    _expect(header, "format", int)
    if header["format"] not in formats:
        raise InputError(
            f"{path} has format {header['format']!s:.20}; this version of the callbacks reads formats "
            f"{' and '.join(map(str, formats))}. Read it with the version that wrote it."
        )
    check_header(header)
    return header


def check_header(header: Any) -> None:
    """Checks the types of all that a resume reads from a header of format 1 or 2; further keys are left alone.

    Raises:
        ValueError: for the first part that is missing or is of another type.
    """
    for key, (kind, is_needed) in _TYPES.items():
        if is_needed or key in header:
            _expect(header, key, kind)
    _check_counts(header["counts"])
    _check_template(header["template"])
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


def _check_counts(counts: dict[str, Any]) -> None:
    for field in fields(Counts):
        if field.name in counts:
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


def _expect(holder: Any, key: str, kind: type) -> None:
    if not isinstance(holder, dict) or key not in holder:
        raise ValueError(f"its header has no {key}")
    _require(type(holder[key]) is kind, key)


def _require(holds: bool, key: str) -> None:
    if not holds:
        raise ValueError(f"its header has no usable {key}")
