"""Callbacks that can be copied, as tuners do with `copy.deepcopy` and job runners with `pickle`."""

from typing import Any


class Copyable:
    """Leaves what belongs to a run out of copies: threads, files, the model.

    A subclass sets `_settings` to the names of the attributes that a copy has, at the end of its constructor, and then calls
    `_forget_run`, which sets all others. A copy goes through `_forget_run` too.
    """

    _settings: frozenset[str]

    def _forget_run(self) -> None:
        """Sets the attributes of a run to what they are before the first one."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in self._settings or name == "_settings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_run()
