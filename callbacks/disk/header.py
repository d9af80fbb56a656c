"""Parses the header of a checkpoint, its JSON part, and checks everything in it that a resume reads."""

import json
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from callbacks.counts import Counts
from callbacks.disk.schema import Check, dict_of, fits, integer, list_of, of_type, or_none, plain, record, row_of
from callbacks.disk.template import COUNTERS, Template
from callbacks.errors import InputError
from callbacks.plain_data import DEEPEST, DEEPEST_STATE, is_logged

_MOST = 1 << 53  # batches or samples of a run: 285 years at a million each second
_LARGEST_SIZE = (1 << 63) - 1  # of a dimension, or of data that repeats itself
_LONGEST = 4096  # characters of a template, whose fields may be longer than what they become in a name
_WORDS, _LARGEST_WORD = 624, (1 << 32) - 1  # of the state of Python's `random`
_HOOKS = {  # in which a checkpoint is saved
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_all_callbacks_ended_batch",
    "on_test_begin",
    "on_epoch_end",
    "on_train_end",
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
    _HAS_FORMAT(header, "")
    if header["format"] not in formats:
        raise unknown_format(path, header["format"], formats)
    check_header(header)
    return header


def unknown_format(path: str, found: int, formats: Iterable[int]) -> InputError:
    """Returns the error for a file of another version of the format, probably a later one.

    Such a file is not skipped as a corrupt one is, since a resume from an older checkpoint would replace it.
    """
    return InputError(
        f"{path} has format {found!s:.20}, but this version of the callbacks reads formats {' and '.join(map(str, formats))}. "
        "Read it with the version that wrote it, or move it to another directory."
    )


def check_header(header: Any) -> None:
    """Checks everything that a resume reads from a header of format 1 or 2. Other keys are ignored.

    Raises:
        ValueError: if a part is missing, has another type, or contradicts another part. The message names it.
    """
    _HEADERS[header["format"]](header, "")
    counts, place = header["counts"], header.get("data") or {}
    for part, whole in {"batches_in_epoch": "batch", "samples_in_epoch": "samples"}.items():
        integer(0, counts[whole])(counts.get(part, 0), f"counts.{part}")
    integer(0, counts["batch"])(place.get("drawn", 0), "data.drawn")
    if header["format"] == 1:
        return
    variables = header["variables"]
    fits(lambda names: len(set(names)) == len(names) and variables.keys() >= set(names))(header["beside"], "beside")


def _is_template(text: Any) -> bool:
    if type(text) is not str or len(text) > _LONGEST:
        return False
    try:
        Template(text)
    except InputError:
        return False
    return True


def _is_random(state: Any) -> bool:
    """Returns whether a value is a state of Python's `random`, as in `random.getstate`."""
    match state:
        case [3, [*words, int(at)], gauss]:
            are_words = len(words) == _WORDS and all(type(each) is int and 0 <= each <= _LARGEST_WORD for each in words)
            return are_words and 0 <= at <= _WORDS and (gauss is None or (type(gauss) is float and math.isfinite(gauss)))
    return False


_BOOL, _TEXT, _COUNT = of_type(bool), of_type(str), integer(0, _MOST)
_SHAPE = or_none(list_of(or_none(integer(0, _LARGEST_SIZE))))
_LOGS = dict_of(plain(DEEPEST, is_logged))
_LEAST = {"epoch": 1, "replicas": 1}
_COUNTS: dict[str, Check] = {
    field.name: _BOOL if field.type is bool else integer(_LEAST.get(field.name, 0), _MOST) for field in fields(Counts)
}
_PLACE: dict[str, Check] = {  # in the data (`data_position.Place`)
    **dict.fromkeys(("created", "used", "drawn", "samples", "epochs"), _COUNT),
    "length": or_none(integer(0, _LARGEST_SIZE)),
    "seeds": or_none(list_of(list_of(of_type(int)))),
    "random": or_none(fits(_is_random)),
}
_NEEDED: dict[str, Check] = {
    "format": of_type(int),
    "template": fits(_is_template),
    "counts": record({name: _COUNTS[name] for name in COUNTERS}, _COUNTS),
    "logs": _LOGS,
    "metrics": _LOGS,
    "callbacks": dict_of(plain(DEEPEST_STATE)),
    "stopped": _BOOL,
}
_OPTIONAL: dict[str, Check] = {
    "data": or_none(record({}, _PLACE)),
    "hook": fits(lambda hook: type(hook) is str and hook in _HOOKS),
    "finite": _BOOL,
}
_OF_FORMAT_2: dict[str, Check] = {
    "variables": dict_of(row_of(_SHAPE, _TEXT, _TEXT)),
    "metrics_variables": list_of(_TEXT),
    "optimizers": dict_of(record({"built": _BOOL, "updates": list_of(_TEXT)}, {})),
    "beside": list_of(_TEXT),
}
_HEADERS: dict[int, Check] = {
    1: record({**_NEEDED, "variables": list_of(row_of(_TEXT, _SHAPE, _TEXT))}, _OPTIONAL, may_have_others=True),
    2: record(
        {**_NEEDED, **_OF_FORMAT_2},
        {**_OPTIONAL, "learning_rates": dict_of(of_type(float)), "trainable": dict_of(_BOOL), "frozen": list_of(_TEXT)},
        may_have_others=True,
    ),
}
_HAS_FORMAT = record({"format": of_type(int)}, {}, may_have_others=True)
