"""The names of checkpoints: a template with counters, and the way back from a name to its counters."""

import functools
import glob
import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from callbacks.errors import InputError

COUNTERS = ("batch", "epoch", "samples", "step")
FIELDS = (*COUNTERS, "replicas")
SUFFIXES = (".weights.h5", ".keras")
_VALID = ", ".join(f"{{{field}}}" for field in FIELDS) + ", or a logged metric such as {val_loss}"


@dataclass(frozen=True)
class Template:
    """A checkpoint's path with fields in braces, as `str.format` reads them.

    ```
    model_batch_at_{batch:05d}.weights.h5    model_batch_at_00050.weights.h5
    model-batch-{batch}.weights.h5           model-batch-50.weights.h5
    e{epoch:02d}_s{samples}.keras            e03_s3200.keras
    {batch}-{val_loss:.3f}.weights.h5        50-0.281.weights.h5
    last.weights.h5                          last.weights.h5 (one file, replaced at each save)
    ```

    Args:
        text: the path, relative or absolute. Its suffix decides what is saved: `.weights.h5`, or `.keras` for the whole model.

    Raises:
        InputError: if the suffix is unknown, a field is no plain name, its format no format of a number, or the braces do not
            close.
    """

    text: str

    def __post_init__(self):
        if not self.text.endswith(SUFFIXES):
            raise InputError(
                f"The filepath provided must end in .weights.h5, or in .keras for the whole model. Received: {self.text!r}"
            )
        for field, spec in self._fields():
            if not field.isidentifier():
                raise InputError(f"A field is a plain name in braces, {_VALID}. Received: {{{field}}} in {self.text!r}")
            try:
                format(0 if field in FIELDS else 0.0, spec)
            except ValueError as error:
                raise InputError(f"{{{field}:{spec}}} in {self.text!r} is no format of a number: {error}") from None

    @property
    def suffix(self) -> str:
        """`.weights.h5` or `.keras`."""
        return next(suffix for suffix in SUFFIXES if self.text.endswith(suffix))

    @property
    def directory(self) -> str:
        """The part of the path that no field changes."""
        return os.path.dirname(self._parts()[0][0]) or "."

    @property
    def counters(self) -> tuple[str, ...]:
        """The fields that change while training goes on; empty for a name that is replaced at each save."""
        return tuple(field for field, _ in self._fields() if field != "replicas")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The fields that are logged metrics."""
        return tuple(field for field, _ in self._fields() if field not in FIELDS)

    def format(self, counts: object, metrics: Mapping[str, float]) -> str:
        """The path of a checkpoint.

        Args:
            counts: an object with the counters as attributes.
            metrics: a value for each of `self.metrics`.
        """
        return self.text.format(**{**metrics, **{field: getattr(counts, field) for field in FIELDS}})

    @property
    def pattern(self) -> str:
        """What `glob` finds the files with, and maybe others."""
        return "".join(glob.escape(literal) + ("*" if field else "") for literal, field in self._parts())

    def files(self) -> list[str]:
        """The existing paths that this template can have made, in no particular order."""
        return [path for path in glob.iglob(self.pattern) if self.matches(path) and os.path.isfile(path)]

    def matches(self, path: str) -> bool:
        """Whether this template can have made the path."""
        return self._regex.fullmatch(path) is not None

    def is_true_of(self, path: str, counts: object) -> bool:
        """Whether the counters in a file's name are these; a name that this template cannot have made claims nothing."""
        name = Template(os.path.basename(self.text))
        true = "".join(
            re.escape(literal + (format(getattr(counts, field), spec) if field in FIELDS else ""))
            + ("[^/]+" if field and field not in FIELDS else "")
            for literal, field, spec, _ in name._parse()
        )
        return not name.matches(os.path.basename(path)) or re.fullmatch(true, os.path.basename(path)) is not None

    @functools.cached_property
    def _regex(self):
        return re.compile("".join(re.escape(literal) + ("[^/]+" if field else "") for literal, field in self._parts()))

    def _fields(self) -> list[tuple[str, str]]:
        return [(field, spec) for _, field, spec, _ in self._parse() if field is not None]

    def _parts(self) -> list[tuple[str, str | None]]:
        return [(literal, field) for literal, field, _, _ in self._parse()]

    def _parse(self):
        try:
            return list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise InputError(f"The braces in {self.text!r} do not form fields: {error}") from None
