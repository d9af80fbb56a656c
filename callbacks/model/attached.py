"""Attaches objects of this package to a model or an optimizer: one of each class, all under one attribute."""

from typing import Any, TypeVar

_ATTRIBUTE = "callbacks.attached"  # with a dot, so that no attribute of the user's has this name
Attached = TypeVar("Attached")
OWN = "global_step."  # begins the name of each variable of this package that a train step writes


class _Objects:
    """The objects of one owner. Neither Keras nor the state tree searches this class for variables.

    Attributes:
        by_class: the objects, by class.
    """

    def __init__(self) -> None:
        self.by_class: dict[type, Any] = {}


def attach(owner: Any, value: Attached) -> Attached:
    """Attaches an object, replaces an earlier one of the same class, and returns the object.

    Args:
        owner: a model or an optimizer.
        value: the object.
    """
    if not hasattr(owner, _ATTRIBUTE):
        setattr(owner, _ATTRIBUTE, _Objects())
    getattr(owner, _ATTRIBUTE).by_class[type(value)] = value
    return value


def attached(owner: Any, kind: type[Attached]) -> Attached | None:
    """Returns the attached object of a class; None if there is none."""
    return getattr(owner, _ATTRIBUTE).by_class.get(kind) if hasattr(owner, _ATTRIBUTE) else None
