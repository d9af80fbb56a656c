"""The ranks of a run: how the processes that train one model together communicate.

The default is one process. A run of several processes installs its own `Ranks`, as `recipes.common.distribution.engine_ranks` does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

from callbacks import preemption
from callbacks.errors import CheckpointReadError, CheckpointWriteError, InputError

Value = TypeVar("Value")


class RanksDiffer(RuntimeError):
    """The ranks of a run have different models. The message names the rank, the variable and the batch."""


class Ranks:
    """A world of one rank, and the interface of larger worlds.

    Every method is a collective unless it says otherwise: all ranks call it, in the same order, or none.

    Values are sent as plain data (`callbacks.plain_data`): None, bool, int, float, str, lists, dicts with string keys, numpy
    arrays and numpy scalars. Tuples arrive as lists. Code is never sent, since ranks cannot authenticate each other.

    Attributes:
        rank: the number of this process, from 0. Rank 0 is the chief, the only one that writes.
        size: the number of ranks.
        gradients_ready_at: when this rank had the gradients of its last batch and began to wait for the others, on
            `time.perf_counter`; None if ranks do not wait for each other.
    """

    rank = 0
    size = 1
    gradients_ready_at: float | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process is rank 0, which writes."""
        return self.rank == 0

    def gather(self, value: Any) -> Sequence[Any]:
        """Returns the values of all ranks in their order, on every rank. The value is plain data."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Returns the chief's value on every rank. The value is plain data; values of other ranks are ignored."""
        return value

    def any(self, flag: bool) -> bool:
        """Returns whether the flag of any rank is True."""
        return flag

    def stop_requested(self) -> int:
        """Returns the exit code of a stop requested on any rank (`callbacks.preemption`), or 0.

        This is not a collective: ranks receive the request with the gradients, all of them after the same batch.
        """
        return preemption.stop_requested()

    def broadcast_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Assigns the chief's value to each variable, on every rank.

        Args:
            variables: of the same shapes and types, in the same order, on every rank.
        """

    def expect_equal(self, values: Mapping[str, tf.Tensor], when: str) -> None:
        """Starts a check that every rank has these values. Training does not wait for the result.

        Args:
            values: name -> value; messages contain the names.
            when: the time for messages, such as "At batch 50".

        Raises:
            RanksDiffer: if the values of the previous call differed.
        """

    def wait(self) -> None:
        """Waits for the check that `expect_equal` started.

        Raises:
            RanksDiffer: if the values differ.
        """

    def barrier(self) -> None:
        """Waits until every rank has called it."""
        self.gather(None)

    def on_chief(self, act: Callable[[], Value]) -> Value:
        """Calls a function on the chief only. Every rank returns its result or raises its exception.

        Args:
            act: returns plain data.

        Raises:
            Exception: on the chief, the exception of `act`; on other ranks, an exception of the same class and text if the class
                is in `_ERRORS` or is `OSError`, else a RuntimeError that names the class.
        """
        outcome: dict[str, Any] = {}
        raised = None
        if self.is_chief:
            try:
                outcome = {"value": act()}
            except Exception as error:
                raised, outcome = error, {"error": _to_plain(error)}
        outcome = self.broadcast(outcome)
        if raised is not None:
            raise raised
        if "error" in outcome:
            raise _to_error(**outcome["error"])
        return outcome["value"]


# Exceptions that arrive with their own class; the received name is only looked up here.
_ERRORS: dict[str, type[Exception]] = {
    each.__name__: each
    for each in (InputError, CheckpointReadError, CheckpointWriteError, RanksDiffer, OSError, ValueError, RuntimeError)
}


def _to_plain(error: Exception) -> dict[str, Any]:
    """Returns an exception as plain data: the arguments of `_to_error`."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        paths = [None if path is None else str(path) for path in (error.filename, error.filename2)]
        return {"name": "OSError", "message": str(error.strerror), "number": error.errno, "paths": paths}
    name = type(error).__name__
    if _ERRORS.get(name) is type(error):
        return {"name": name, "message": str(error)}
    return {"name": "RuntimeError", "message": f"The chief raised {name}: {error}"}


def _to_error(name: str, message: str, number: int | None = None, paths: Sequence[str | None] = (None, None)) -> Exception:
    if number is not None:
        return OSError(number, message, paths[0], None, paths[1])  # Python chooses the subclass by the number
    return _ERRORS[name](message)


_current = Ranks()


def ranks() -> Ranks:
    """Returns the ranks of this process's run."""
    return _current


def install(installed: Ranks) -> None:
    """Sets the ranks of this process's run. Call it before a model is made."""
    global _current
    _current = installed
