"""Checks that a checkpoint has the variables of a model."""

from typing import Any

import tensorflow as tf

from callbacks.errors import InputError
from callbacks.model.keras_private import KerasVariable
from callbacks.model.state_tree import GLOBAL_SEEDS, StateTree, shape_of


class NotBuilt(InputError):
    """The model lacks variables, which a callback or its first batch may create."""


class OptimizersDiffer(NotBuilt):
    """Optimizers have more variables than in the file, or another kind of learning rate. A callback may replace them later."""


def check_match(header: dict[str, Any], tree: StateTree, path: str, with_optimizers: bool = True) -> None:
    """Compares the names, shapes and dtypes of variables. Metrics and optional variables are ignored.

    The variables of layers come first. If they differ, those of optimizers differ too, and a message about these would not help.

    Args:
        header: the header of the checkpoint.
        tree: the variables of the model.
        path: the path of the checkpoint, for messages.
        with_optimizers: False compares layers only.

    Raises:
        NotBuilt: if the model lacks variables of the checkpoint. The message names the first one.
        OptimizersDiffer: if the model has all variables of the checkpoint, and its optimizers have more.
        InputError: if the checkpoint is of another model. The message names the first variable that differs.
    """
    stored, here = header["variables"], tree.variables
    optional = {*header["metrics_variables"], *tree.metrics, *(each for each in (*stored, *here) if each.startswith(GLOBAL_SEEDS))}
    for name, optimizer in header["optimizers"].items():
        if not optimizer["built"]:
            optional |= {each for each in here if each.startswith(f"{name}.")}
    of_optimizers = tuple(f"{name}." for name in (*header["optimizers"], *tree.optimizers))
    for are_of_optimizers in (False, True)[: 1 + with_optimizers]:
        if are_of_optimizers:
            _check_schedules(header, tree, path)
        in_file, in_model = (
            {
                name: each
                for name, each in variables.items()
                if name not in optional and name.startswith(of_optimizers) == are_of_optimizers
            }
            for variables in (stored, here)
        )
        _compare(in_file, in_model, tree.is_built, path, OptimizersDiffer if are_of_optimizers else InputError)


def _check_schedules(header: dict[str, Any], tree: StateTree, path: str) -> None:
    """Checks that learning rates are numbers, which are variables of the optimizer, or schedules, as they were."""
    kinds = ("a schedule", "a number")
    for name, optimizer in header["optimizers"].items():
        rate = f"{name}._learning_rate"
        then, now = rate in header["variables"], rate in tree.variables
        if optimizer["built"] and name in tree.optimizers and then != now:
            raise OptimizersDiffer(
                f"Cannot resume from {path}: its run was compiled with {kinds[then]} as the learning rate, and this model with "
                f"{kinds[now]}. Compile with {kinds[then]}, or begin a new run with these weights: model.load_weights(path)."
            )


def _compare(in_file: dict[str, Any], in_model: dict[str, Any], is_built: bool, path: str, error: type[InputError]) -> None:
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
                f"The checkpoint cannot be restored, since the model has no {path_there} before it is built. "
                "Call the model on a batch, or give it an Input."
            )
        raise NotBuilt(f"{path} is of another model: only the file has {path_there}, of shape {_shown(shape)}.")
    for name in added:
        variable = in_model[name]
        raise error(
            f"{path} is of another model: only this model has {_title(name, variable)}, of shape {_shown(shape_of(variable))}."
        )


def _shown(shape: list[int | None] | None) -> str:
    return "of any rank" if shape is None else str(tuple(shape))


def _title(name: str, variable: Any) -> str:
    return variable.path if isinstance(variable, KerasVariable) else name
