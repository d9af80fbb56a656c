"""Holding the values of many variables at one instant, without a copy: TensorFlow copies a variable when it is next written."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import context, execute  # see _read

_ATTRIBUTE = "_holder"


class _Holder:
    """What reads some variables of a model with one call for each device.

    Args:
        of_chief: variables of which the first replica's value is wanted.
        of_all: variables of which every replica's value is wanted.
    """

    def __init__(self, model: keras.Model, of_chief: Sequence[keras.Variable], of_all: Sequence[keras.Variable]):
        self._of_chief, self._of_all = list(of_chief), list(of_all)
        strategy = model.distribute_strategy
        by_variable = [parts_of(strategy, v)[:1] for v in of_chief] + [parts_of(strategy, v) for v in of_all]
        self._counts = [len(parts) for parts in by_variable]
        flat = [part for parts in by_variable for part in parts]
        places: dict[str, list[int]] = {}
        for place, part in enumerate(flat):
            places.setdefault(part.device, []).append(place)
        self._devices = [
            (of_device, [flat[i].handle for i in of_device], [flat[i].dtype.as_datatype_enum for i in of_device])
            for of_device in places.values()
        ]

    def is_of(self, of_chief: Iterable[keras.Variable], of_all: Iterable[keras.Variable]) -> bool:
        """Whether it was made for these."""
        return _ids(self._of_chief) == _ids(of_chief) and _ids(self._of_all) == _ids(of_all)

    def hold(self) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
        """The values that `hold` returns."""
        found: dict[int, tf.Tensor] = {}
        for places, handles, types in self._devices:
            found |= dict(zip(places, _read(handles, types), strict=True))
        values = iter(found[place] for place in range(len(found)))
        by_variable = [[next(values) for _ in range(count)] for count in self._counts]
        return [first for (first,) in by_variable[: len(self._of_chief)]], by_variable[len(self._of_chief) :]


def hold(
    model: keras.Model, of_chief: Sequence[keras.Variable], of_all: Sequence[keras.Variable]
) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
    """The values that variables have now, whatever is written to them later.

    Args:
        model: of which they are.
        of_chief: variables of which the first replica's value is wanted.
        of_all: variables of which every replica's value is wanted.

    Returns:
        A value for each of `of_chief`; and the values `[replica]` for each of `of_all`.
    """
    holder = getattr(model, _ATTRIBUTE, None)
    if holder is None or not holder.is_of(of_chief, of_all):
        holder = _Holder(model, of_chief, of_all)
        setattr(model, _ATTRIBUTE, holder)
    return holder.hold()


def parts_of(strategy: tf.distribute.Strategy, variable: keras.Variable) -> Sequence[tf.Variable]:
    """What each replica of this process has of a variable."""
    return strategy.experimental_local_results(variable._value)


def _read(handles: list[Any], types: list[int]) -> list[tf.Tensor]:
    """Reads variables of one device. Training waits for it, and a call for each takes ten times as long as this one.

    The operation is TensorFlow's own, for all devices, and has no public name.
    """
    attributes = ("N", len(handles), "dtypes", types)
    return execute.execute(b"_ReadVariablesOp", len(handles), inputs=handles, attrs=attributes, ctx=context.context())


def _ids(variables):
    return [id(variable) for variable in variables]
