"""The names of checkpoints: a template with counters, and the way back from a name to its counters."""

import contextlib
import functools
import glob
import itertools
import os
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from callbacks.errors import InputError
from callbacks.folders import is_url

COUNTERS = ("batch", "epoch", "samples", "step")
FIELDS = (*COUNTERS, "replicas")
SUFFIXES = (".weights.h5", ".keras")
_VALID = ", ".join(f"{{{field}}}" for field in FIELDS) + ", or a logged metric such as {val_loss}"
_LARGE = [int(f"{digit}0" * 30, 16) for digit in "123456789abcdef"]  # shows every digit of every base, and every separator
_LONG = 10**12  # a counter that no run exceeds
_UNFIT = re.compile(r"[/\x00-\x1f\x7f]")  # what of a value would lead to another directory, or break a line of output
_NUMBER = "(?:[0-9][0-9.,_]*(?:[eE][-+][0-9]+)?|0*(?:nan|inf|NAN|INF))%?"


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

    A counter matches digits only, as its format spec writes them: `m_{batch:05d}.keras` matches neither `m_best_00050.keras`
    nor `m_50.keras`. A metric with a format of numbers matches what a formatted number looks like, any other one any text. A
    metric may have any name that Keras gives it: `{val_top-5:.3f}`, `{acc@1}`, `{a/b}`; `{f1[0]:.2f}` is the first number of
    a vector. A slash in a value becomes `_`, so that no value leads to another directory.

    Args:
        text: the path, relative or absolute. Its suffix decides what is saved: `.weights.h5`, or `.keras` for the whole model.

    Raises:
        InputError: if the text is a URL, the suffix is unknown, a field has no name, has a conversion or a format that is
            none of its values, or the braces do not close.
    """

    text: str

    def __post_init__(self):
        if is_url(self.text):
            raise InputError(
                "A checkpoint becomes visible by an atomic rename, so it needs a POSIX file system. Give a path on a local or "
                f"mounted one. Received: {self.text!r}"
            )
        if not self.text.endswith(SUFFIXES):
            raise InputError(
                f"The filepath provided must end in .weights.h5, or in .keras for the whole model. Received: {self.text!r}"
            )
        for field, spec, conversion in self._fields():
            name = re.split(r"[.\[]", field)[0]
            if not name.strip() or name.isdecimal() or (name != field and name in FIELDS):
                raise InputError(f"A field is a name in braces, {_VALID}. Received: {{{field}}} in {self.text!r}")
            if conversion:
                raise InputError(
                    f"A field takes no conversion. Use {{{field}}}. Received: {{{field}!{conversion}}} in {self.text!r}"
                )
            if "/" in spec:
                raise InputError(f"A format must not put a slash into a name. Received: {{{field}:{spec}}} in {self.text!r}")
            try:
                if re.search(r"[1-9]\d{3}", spec):
                    raise ValueError("it is longer than a file's name")
                _look(field, spec)
            except (ValueError, OverflowError) as error:
                raise InputError(f"{{{field}:{spec}}} in {self.text!r} is no format of a number: {error}") from None

    @property
    def suffix(self) -> str:
        """`.weights.h5` or `.keras`."""
        return next(suffix for suffix in SUFFIXES if self.text.endswith(suffix))

    @property
    def directory(self) -> str:
        """The part of the path that no field changes."""
        return os.path.dirname(self._parts[0][0]) or "."

    @property
    def has_fields(self) -> bool:
        """Whether the text differs from a plain path."""
        return any(True for _ in self._fields())

    @property
    def counters(self) -> tuple[str, ...]:
        """The fields that change while training goes on; empty for a name that is replaced at each save."""
        return tuple(field for field, _, _ in self._fields() if field != "replicas")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The fields that are logged metrics."""
        return tuple(field for field, _, _ in self._fields() if field not in FIELDS)

    def missing(self, metrics: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields that have no value, or None, among these metrics."""
        return tuple(field for field in self.metrics if _find(field, metrics) is None)

    def format(self, counts: object, metrics: Mapping[str, Any]) -> str:
        """The path of a checkpoint.

        Args:
            counts: an object with the counters as attributes.
            metrics: a value for each of `self.metrics`.

        Raises:
            InputError: if a value does not have the format that its field has.
        """

        def written(field, spec):
            if field in FIELDS:
                return format(getattr(counts, field), spec)
            value = _find(field, metrics)
            try:
                text = _UNFIT.sub("_", format(value, spec))
            except (TypeError, ValueError) as error:
                received = " ".join(f"{value!r:.200}".split())
                raise InputError(
                    f"{{{field}:{spec}}} in {self.text!r} is no format of the value that was logged: {error}. "
                    f"Use {{{field}}}, or a metric that is a number. Received: {received}"
                ) from None
            return re.sub(r"\A\.", "_", text) if _takes_texts(spec) else text  # no hidden file, and no `..`

        return "".join(literal + (written(field, spec) if field else "") for literal, field, spec, _ in self._parts)

    @property
    def last_part(self) -> str:
        """The template of the file's name in its directory; the names of fields may have slashes too."""
        masked = re.sub(r"\{\{|\}\}|\{[^{}]*\}", lambda braces: "." * len(braces[0]), self.text)
        return self.text[masked.rfind("/") + 1 :]

    def longest(self) -> str:
        """A path as long as this template makes them: with large counters, and with metrics of many digits."""
        return "".join(literal + _longest(field, spec) for literal, field, spec, _ in self._parts)

    def expanded(self) -> "Template":
        """The same template with the home directory in place of a leading `~`."""
        return Template(_with_home(self.text))

    def absolute(self) -> "Template":
        """The same template from the root, so that a later change of the working directory does not move it."""
        return Template(os.path.join(_escaped(os.getcwd()), _with_home(self.text)))

    @property
    def pattern(self) -> str:
        """What `glob` finds the files with, and maybe others."""
        return "".join(glob.escape(literal) + ("*" if field else "") for literal, field, _, _ in self._parts)

    def files(self) -> list[str]:
        """The existing paths that this template can have made, in no particular order; they need not be files."""
        return [path for path in glob.iglob(self.pattern) if self.matches(path)]

    def matches(self, path: str) -> bool:
        """Whether this template can have made the path."""
        return self._regex.fullmatch(path) is not None

    def makes(self, path: str, counts: object) -> bool:
        """Whether this template makes the path from these counters, with some value of each metric."""
        return re.fullmatch(self._expression(counts), path) is not None

    def is_true_of(self, path: str, counts: object) -> bool:
        """Whether the counters in a file's name are these; a name that this template cannot have made claims nothing.

        The template may come from a file that was made to harm: this takes a time that grows with the name only.
        """
        claims = _claims(Template(self.last_part)._parts, os.path.basename(path))
        return all(format(getattr(counts, field), spec) == text for field, spec, text in claims)

    @functools.cached_property
    def _regex(self):
        return re.compile(self._expression())

    def _expression(self, counts: object = None) -> str:
        """A regular expression of the paths: of all, or of those with these counters."""

        def look(field, spec):
            known = counts is not None and field in FIELDS
            return re.escape(format(getattr(counts, field), spec)) if known else _look(field, spec)

        return "".join(re.escape(literal) + (look(field, spec) if field else "") for literal, field, spec, _ in self._parts)

    def _fields(self) -> Iterator[tuple[str, str, str | None]]:
        return ((field, spec, conversion) for _, field, spec, conversion in self._parts if field is not None)

    @functools.cached_property
    def _parts(self) -> list[tuple[str, str | None, str, str | None]]:
        """Literal text, and the field that follows it, its spec and its conversion; the field is None after the last one."""
        parts, literal = [], ""
        try:
            for text, field, spec, conversion in string.Formatter().parse(self.text):
                literal += text  # a doubled brace ends a literal without a field
                if field is not None:
                    parts.append((literal, field, spec or "", conversion))
                    literal = ""
        except ValueError as error:
            raise InputError(f"The braces in {self.text!r} do not form fields: {error}") from None
        return [*parts, (literal, None, "", None)]


def _look(field: str, spec: str) -> str:
    """A regular expression of what a field looks like when it is formatted with the spec."""
    return _look_of_counter(spec) if field in FIELDS else _look_of_metric(spec)


def _look_of_counter(spec: str) -> str:
    """Only the shortest counters are filled up: a longer one starts with a digit above zero, or with the prefix of its base."""
    shortest, large = format(0, spec), [format(number, spec) for number in _LARGE]
    unfilled = "".join(large)
    no_zero = "" if unfilled.startswith("0") else "(?!0)"
    return f"(?:{_any_of(shortest + unfilled)}{{{len(shortest)}}}|{no_zero}{_any_of(unfilled)}{{{len(shortest) + 1},}})"


def _look_of_metric(spec: str) -> str:
    if _takes_texts(spec):
        return "[^/]*"
    format(0.0, spec)
    fill = re.match("(.)[<>=^]", spec)
    filled = f"{_any_of(fill[1] if fill else ' ')}*"
    return f"{filled}[-+ ]?{filled}{_NUMBER}{filled}"


def _claims(parts: list[tuple[str, str | None, str, str | None]], name: str) -> list[tuple[str, str, str]]:
    """The counters in a name, each with its spec and its text; none where the name is not of this kind.

    Of fields that stand side by side, nobody can tell which part of the name is whose: such a name claims nothing either.
    """
    first, last, found = parts[0][0], parts[-1][0], []
    if not (name.startswith(first) and name[len(first) :].endswith(last)):
        return []
    at, end = len(first), len(name) - len(last)
    for (_, field, spec, _), (literal, after, _, _) in itertools.pairwise(parts):
        assert field is not None  # only after the last part there is none
        until = end if after is None else name.find(literal, at + 1, end)  # a sign may be the literal's first character
        if until < 0 or (not literal and after is not None) or not re.fullmatch(_look(field, spec), name[at:until]):
            return []
        if field in FIELDS:
            found.append((field, spec, name[at:until]))
        at = until + len(literal)
    return found


def _takes_texts(spec: str) -> bool:
    try:
        format("", spec)
    except ValueError:
        return False
    return True


def _find(field: str, metrics: Mapping[str, Any]) -> Any:
    """The value of a field, found as `str.format` finds it; None if there is none."""
    if field in metrics:
        return metrics[field]
    try:
        return string.Formatter().get_field(field, (), metrics)[0]
    except (LookupError, AttributeError, TypeError, ValueError):
        return None


def _longest(field: str | None, spec: str) -> str:
    if field is None:
        return ""
    written = []
    for value in [_LONG] if field in FIELDS else [-_LONG / 7, -1 / _LONG / 7]:
        with contextlib.suppress(ValueError):  # a format of texts, of which nobody knows the longest
            written.append(format(value, spec))
    return max(written, key=len, default="")


def _any_of(characters: str) -> str:
    return f"[{''.join(re.escape(each) for each in sorted(set(characters)))}]"


def _with_home(text: str) -> str:
    head, slash, rest = text.partition("/")
    home = os.path.expanduser(head)
    return text if home == head else _escaped(home) + slash + rest


def _escaped(path: str) -> str:
    """The text of a template that is this very path."""
    return path.replace("{", "{{").replace("}", "}}")
