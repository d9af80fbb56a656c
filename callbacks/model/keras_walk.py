"""The walk of Keras's saving code over a model: which objects it visits, in which order, and how it names them."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from callbacks.model.keras_private import CONTAINERS, VISITS_NESTED_CONTAINERS, KerasSaveable, saved_kind, skipped_attributes


def saved_objects(model: Any, skip: Iterable[Any] = ()) -> Iterator[tuple[str, Any]]:
    """Yields the path of each group that the walk writes, and the object in it. The path of the model itself is empty.

    Args:
        model: the model.
        skip: objects that the walk leaves out, with everything in them.
    """
    return _visit(model, "", {id(each) for each in skip})


def _visit(saveable: Any, path: str, visited: set[int]) -> Iterator[tuple[str, Any]]:
    if id(saveable) in visited:
        return
    if hasattr(saveable, "save_own_variables"):
        yield path, saveable
    visited.add(id(saveable))
    for name, child in saved_children(saveable):
        inner = f"{path}/{name}" if path else name
        if isinstance(child, KerasSaveable):
            yield from _visit(child, inner, visited)
        elif isinstance(child, CONTAINERS):
            yield from _visit_container(child, inner, visited, set())


def _visit_container(container: Iterable, path: str, visited: set[int], outer: set[int]) -> Iterator[tuple[str, Any]]:
    if id(container) in outer:
        return
    outer.add(id(container))
    for name, child in child_names(container):
        if isinstance(child, KerasSaveable):
            yield from _visit(child, f"{path}/{name}", visited)
        else:
            yield from _visit_container(child, f"{path}/{name}", visited, outer)


def saved_children(saveable: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and value of each attribute that the walk visits, in its order.

    `saving_lib._walk_saveable` does the same, but Keras 3.15 stores its cache under one name and looks it up under another, so
    each call makes a new reference layer.
    """
    kind = saved_kind(saveable)
    skipped = skipped_attributes(kind)
    if kind in ("Sequential", "Functional"):
        yield "layers", saveable.layers
    names = [name for name in dir(saveable) if not name.startswith("__") and name not in skipped]
    for name in sorted(names, key=lambda name: f"~{name}" if name.startswith("_") else name):
        try:
            child = getattr(saveable, name)
        except Exception:  # a property that raises; Keras skips it too
            continue
        yield name, child


def child_names(container: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields the saveables and containers in a container, named as in Keras's files: `dense`, `dense_1`, `container`."""
    seen: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if isinstance(child, KerasSaveable):
            name = _to_snake_case(type(child).__name__)
        elif isinstance(child, CONTAINERS) and VISITS_NESTED_CONTAINERS:
            name = "container"
        else:
            continue
        number = seen[name] = seen.get(name, -1) + 1
        yield f"{name}_{number}" if number else name, child


def _to_snake_case(name: str) -> str:
    """Returns a class name as Keras names groups: `Conv2D` -> `conv2d`, `LayerNormalization` -> `layer_normalization`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
