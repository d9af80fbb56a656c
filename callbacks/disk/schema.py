"""Describes the parts of a header, whose JSON anybody may have written, and checks them.

A check receives a value and its name in the header, and raises a ValueError that names the first part that does not fit.
"""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]


def fits(is_right: Callable[[Any], bool]) -> Check:
    """Returns the check of a condition."""

    def check(value, name):
        if not is_right(value):
            raise ValueError(f"its header has no usable {name}")

    return check


def of_type(kind: type) -> Check:
    """Returns the check of a type. True is no number."""
    return fits(lambda value: type(value) is kind)


def integer(least: int, most: int) -> Check:
    """Returns the check of an integer between two others, both included."""
    return fits(lambda value: type(value) is int and least <= value <= most)


def or_none(check_value: Check) -> Check:
    """Returns the check of a value that may be null."""
    return lambda value, name: None if value is None else check_value(value, name)


def list_of(check_item: Check) -> Check:
    """Returns the check of a list."""

    def check(value, name):
        _IS_LIST(value, name)
        for each in value:
            check_item(each, name)

    return check


def dict_of(check_value: Check) -> Check:
    """Returns the check of a dict with any keys."""

    def check(value, name):
        _IS_DICT(value, name)
        for each in value.values():
            check_value(each, name)

    return check


def row_of(*checks: Check) -> Check:
    """Returns the check of a list with one check for each item."""

    def check(value, name):
        fits(lambda value: type(value) is list and len(value) == len(checks))(value, name)
        for check_item, each in zip(checks, value, strict=True):
            check_item(each, name)

    return check


def record(needed: Mapping[str, Check], optional: Mapping[str, Check], *, may_have_others: bool = False) -> Check:
    """Returns the check of a dict with known keys."""
    known = {**needed, **optional}

    def check(value, name):
        _IS_DICT(value, name)
        prefix = f"{name}." if name else ""
        for key in needed.keys() - value.keys():
            raise ValueError(f"its header has no {prefix}{key}")
        if not may_have_others:
            fits(lambda value: value.keys() <= known.keys())(value, name)
        for key in known.keys() & value.keys():
            known[key](value[key], f"{prefix}{key}")

    return check


def plain(deepest: int, is_number: Callable[[int], bool] = lambda number: True) -> Check:
    """Returns the check of any JSON value that code which visits it by recursion can visit.

    Args:
        deepest: the number of levels of lists and dicts.
        is_number: whether an integer fits.
    """

    def is_right(value):
        level = [value]
        for _ in range(deepest + 1):
            if not all(is_number(each) for each in level if type(each) is int):
                return False
            inner = [each.values() if type(each) is dict else each for each in level if type(each) in (dict, list)]
            level = [each for holder in inner for each in holder]
        return not level

    return fits(is_right)


_IS_LIST, _IS_DICT = of_type(list), of_type(dict)
