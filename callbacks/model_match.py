"""Whether the variables of a checkpoint are those of a model."""

from typing import Any

import tensorflow as tf

from callbacks.errors import InputError
from callbacks.keras_private import KerasVariable
from callbacks.state_tree import GLOBAL_SEEDS, StateTree, shape_of


class NotBuilt(InputError):
    """The model lacks variables, which a callback or its first batch may make."""


def check_match(header: dict[str, Any], tree: StateTree, path: str, with_optimizers: bool = True) -> None:
    """Compares names, shapes and dtypes; metrics, which may be others, and what need not exist are left out.

    The variables of layers come first: where they differ, so do those of the optimizers, and these would name no cause.

    Args:
        header: the JSON part of the checkpoint's state.
        tree: the variables of the model.
        path: of the checkpoint, for messages.
        with_optimizers: False compares layers only.

    Raises:
        NotBuilt: if the model lacks variables of the checkpoint; the first one is named.
        InputError: if the checkpoint is of another model; the first variable that does not fit is named.
    """
    stored, here = header["variables"], tree.variables
    optional = {*header["metrics_variables"], *tree.metrics, *(each for each in (*stored, *here) if each.startswith(GLOBAL_SEEDS))}
    for name, optimizer in header["optimizers"].items():
        if not optimizer["built"]:
            optional |= {each for each in here if each.startswith(f"{name}.")}
    of_optimizers = tuple(f"{name}." for name in (*header["optimizers"], *tree.optimizers))
    for are_of_optimizers in (False, True)[: 1 + with_optimizers]:
        in_file, in_model = (
            {
                name: each
                for name, each in variables.items()
                if name not in optional and name.startswith(of_optimizers) == are_of_optimizers
            }
            for variables in (stored, here)
        )
        _compare(in_file, in_model, tree.is_built, path)


def _compare(in_file: dict[str, Any], in_model: dict[str, Any], is_built: bool, path: str) -> None:
    for name, (shape, dtype, _) in in_file.items():
        variable = in_model.get(name)
        if variable is not None and (shape_of(variable), tf.as_dtype(variable.dtype).name) != (shape, dtype):
            raise InputError(
                f"{path} is of another model: {_title(name, variable)} has shape {_shown(shape_of(variable))} and dtype "
                f"{tf.as_dtype(variable.dtype).name} here, {_shown(shape)} and {dtype} in the file."
            )
    missing, added = (name for name in in_file if name not in in_model), (name for name in in_model if name not in in_file)
    for name in missing:
        shape, _, path_there = in_file[name]
        if not is_built:
            raise NotBuilt(
                f"A checkpoint fills the variables of a model. This one has no {path_there} before it is built: "
                "call it on a batch, or give it an Input."
            )
        raise NotBuilt(f"{path} is of another model: only the file has {path_there}, of shape {_shown(shape)}.")
    for name in added:
        variable = in_model[name]
        raise InputError(
            f"{path} is of another model: only this model has {_title(name, variable)}, of shape {_shown(shape_of(variable))}."
        )


def _shown(shape: list[int | None] | None) -> str:
    return "of any rank" if shape is None else str(tuple(shape))


def _title(name: str, variable: Any) -> str:
    return variable.path if isinstance(variable, KerasVariable) else name
