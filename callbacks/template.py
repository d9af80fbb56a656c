"""The names of checkpoints: a template with counters, and the way back from a name to its counters."""

import glob
import os
import re
import string
from dataclasses import dataclass

from callbacks.errors import InputError

COUNTERS = ("batch", "epoch", "samples", "step")
FIELDS = (*COUNTERS, "replicas")
SUFFIXES = (".weights.h5", ".keras")


@dataclass(frozen=True)
class Template:
    """A checkpoint's path with fields in braces, as `str.format` reads them.

    ```
    model_batch_at_{batch:05d}.weights.h5    model_batch_at_00050.weights.h5
    model-batch-{batch}.weights.h5           model-batch-50.weights.h5
    e{epoch:02d}_s{samples}.keras            e03_s3200.keras
    last.weights.h5                          last.weights.h5 (one file, replaced at each save)
    ```

    Args:
        text: the path, relative or absolute. Its suffix decides what is saved: `.weights.h5`, or `.keras` for the whole model.

    Raises:
        InputError: if the suffix or a field is unknown, or the braces do not close.
    """

    text: str

    def __post_init__(self):
        if not self.text.endswith(SUFFIXES):
            raise InputError(
                f"A checkpoint's name ends in .weights.h5, or in .keras for the whole model. Received: {self.text!r}"
            )
        for field, spec in self._parts(with_spec=True):
            try:
                format(0, spec)
            except ValueError as error:
                raise InputError(f"{{{field}:{spec}}} in {self.text!r} is no format for a whole number: {error}") from None

    @property
    def suffix(self) -> str:
        """`.weights.h5` or `.keras`."""
        return next(suffix for suffix in SUFFIXES if self.text.endswith(suffix))

    @property
    def counters(self) -> tuple[str, ...]:
        """The fields that change while training goes on; empty for a name that is replaced at each save."""
        return tuple(field for field, _ in self._parts(with_spec=True) if field in COUNTERS)

    def format(self, counts) -> str:
        """The path of the checkpoint that stands at these counts (an object with the fields as attributes)."""
        return self.text.format(**{field: getattr(counts, field) for field in FIELDS})

    def files(self) -> list[str]:
        """The existing paths that this template can have made, in no particular order."""
        pattern = "".join(glob.escape(literal) + ("*" if field else "") for literal, field in self._parts())
        regex = re.compile("".join(re.escape(literal) + (".+" if field else "") for literal, field in self._parts()))
        return [path for path in glob.iglob(pattern) if regex.fullmatch(path) and os.path.isfile(path)]

    def _parts(self, with_spec=False):
        try:
            parts = [(literal, field, spec) for literal, field, spec, _ in string.Formatter().parse(self.text)]
        except ValueError as error:
            raise InputError(f"The braces in {self.text!r} do not form fields: {error}") from None
        for _, field, _ in parts:
            if field is not None and field not in FIELDS:
                valid = " ".join(f"{{{name}}}" for name in FIELDS)
                raise InputError(f"A checkpoint's name takes the fields {valid}. Received: {{{field}}} in {self.text!r}")
        if with_spec:
            return [(field, spec) for _, field, spec in parts if field is not None]
        return [(literal, field) for literal, field, _ in parts]
