"""The ranks of a run: what the callbacks need of the processes that train one model together.

One process is the default. A run of many processes installs its own: `recipes.common.distribution.engine_ranks` has them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

from callbacks import preemption
from callbacks.errors import CheckpointWriteError, InputError

Value = TypeVar("Value")


class RanksDiffer(RuntimeError):
    """The ranks of a run do not train one model: says which rank, in what, and since when."""


class Ranks:
    """A world of one rank, and what a larger one has to offer.

    Every method is a collective: all ranks have to call it, in the same order, or none.

    Values travel as plain data (`callbacks.plain_data`): None, bool, int, float, str, lists, dicts with string keys, numpy
    arrays and numpy scalars. Tuples arrive as lists. Code never travels: ranks cannot tell who sends in another's place.

    Attributes:
        rank: this process, from 0. Rank 0 is the chief, the only one that writes.
        size: how many there are.
        gradients_ready_at: when this rank had the gradients of its last batch, and began to wait for the others, on
            `time.perf_counter`; None where nobody waits.
    """

    rank = 0
    size = 1
    gradients_ready_at: float | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> Sequence[Any]:
        """What each rank gave, in the order of ranks, for every rank. The value is plain data."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """What the chief gave, for every rank. The value is plain data; what other ranks give is not looked at."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether any rank has raised its flag."""
        return flag

    def asked_to_leave(self) -> int:
        """The exit code with which any rank was asked to leave (`callbacks.preemption`), or 0.

        Not a collective: ranks learn of it along with what they tell each other anyway, all of them after the same batch.
        """
        return preemption.asked()

    def give_chiefs_values(self, variables: Sequence[keras.Variable]) -> None:
        """Assigns the chief's value to each variable, on every rank.

        Args:
            variables: of the same shapes and types, in the same order, on every rank.
        """

    def expect_equal(self, values: Mapping[str, tf.Tensor], when: str) -> None:
        """Has it checked that every rank holds these values; training does not wait for that.

        Args:
            values: by the names that a message calls them.
            when: for the message, "At batch 50" say.

        Raises:
            RanksDiffer: if the values of the call before differed.
        """

    def settle(self) -> None:
        """Finishes the check that `expect_equal` has begun.

        Raises:
            RanksDiffer: if the values differ.
        """

    def barrier(self) -> None:
        """Waits until every rank has come here."""
        self.gather(None)

    def on_chief(self, act: Callable[[], Value]) -> Value:
        """Calls `act` on the chief alone. Every rank returns what it returned, or raises what it raised.

        Args:
            act: returns plain data.

        Raises:
            Exception: on the chief, the very exception of `act`; on other ranks one of the same class and text, if the class is
                in `_ERRORS` or an `OSError`, else a RuntimeError that names the class.
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


# Exceptions that arrive as what they are: the name that travels is only looked up here.
_ERRORS: dict[str, type[Exception]] = {
    each.__name__: each for each in (InputError, CheckpointWriteError, RanksDiffer, OSError, ValueError, RuntimeError)
}


def _to_plain(error: Exception) -> dict[str, Any]:
    """An exception as plain data: the arguments of `_to_error`."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        paths = [None if path is None else str(path) for path in (error.filename, error.filename2)]
        return {"name": "OSError", "message": str(error.strerror), "number": error.errno, "paths": paths}
    name = type(error).__name__
    if _ERRORS.get(name) is type(error):
        return {"name": name, "message": str(error)}
    return {"name": "RuntimeError", "message": f"The chief raised {name}: {error}"}


def _to_error(name: str, message: str, number: int | None = None, paths: Sequence[str | None] = (None, None)) -> Exception:
    if number is not None:
        return OSError(number, message, paths[0], None, paths[1])  # Python makes it of the subclass that the number stands for
    return _ERRORS[name](message)


_current = Ranks()


def ranks() -> Ranks:
    """The ranks of the run that this process belongs to."""
    return _current


def install(installed: Ranks) -> None:
    """Makes these the ranks of this process's run; to be called before a model is made."""
    global _current
    _current = installed
