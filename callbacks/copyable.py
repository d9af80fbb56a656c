"""Callbacks that can be copied, as tuners do with `copy.deepcopy` and job runners with `pickle`."""

from typing import Any


class Copyable:
    """Copies the settings of a callback, but not what belongs to a run: threads, files, the model.

    At the end of its constructor, a subclass sets `_settings` to the names of the attributes to copy, and then calls `_forget_run`,
    which sets all other attributes. A copy calls `_forget_run` too.
    """

    _settings: frozenset[str]

    def _forget_run(self) -> None:
        """Sets the attributes of a run to their values before the first run."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in self._settings or name == "_settings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_run()
