"""Templates of checkpoint names: from counters to a name, and from a name back to its counters."""

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

from callbacks.disk.folders import is_url
from callbacks.errors import InputError

COUNTERS = ("batch", "epoch", "samples", "step")
FIELDS = (*COUNTERS, "replicas")
SUFFIXES = (".weights.h5", ".keras")
_VALID = ", ".join(f"{{{field}}}" for field in FIELDS) + ", or a logged metric such as {val_loss}"
_LARGE = [int(f"{digit}0" * 30, 16) for digit in "123456789abcdef"]  # contains every digit of every base, and every separator
_LONG = 10**12  # a counter that no run exceeds
_UNFIT = re.compile(r"[/\x00-\x1f\x7f]")  # characters that lead to another directory or break a line of output
_NUMBER = "(?:[0-9][0-9.,_]*(?:[eE][-+][0-9]+)?|0*(?:nan|inf|NAN|INF))%?"


@dataclass(frozen=True)
class Template:
    """The path of checkpoints, with fields in braces as in `str.format`.

    ```
    model_batch_at_{batch:05d}.weights.h5    model_batch_at_00050.weights.h5
    model-batch-{batch}.weights.h5           model-batch-50.weights.h5
    e{epoch:02d}_s{samples}.keras            e03_s3200.keras
    {batch}-{val_loss:.3f}.weights.h5        50-0.281.weights.h5
    last.weights.h5                          last.weights.h5 (one file, replaced at each save)
    ```

    A counter matches only digits in its format: `m_{batch:05d}.keras` matches neither `m_best_00050.keras` nor `m_50.keras`. A
    metric with a number format matches numbers in that format; a metric without one matches any text. A metric may have any
    name that Keras allows: `{val_top-5:.3f}`, `{acc@1}`, `{a/b}`; `{f1[0]:.2f}` is the first number of a vector. A slash in a
    value becomes `_`, so that no value leads to another directory, and no value gives a hidden file.

    Args:
        text: the path, relative or absolute. Its suffix decides what is saved: `.weights.h5`, or `.keras` for the whole model.

    Raises:
        InputError: if the text is a URL, the suffix is unknown, a field has no name, a conversion or a format that does not fit
            its values, or the braces do not match.
    """

    text: str

    def __post_init__(self):
        if is_url(self.text):
            raise InputError(
                "Checkpoints need a POSIX file system, since an atomic rename makes them visible. Give a path on a local or "
                f"mounted file system. Received: {self.text!r}"
            )
        if not self.text.endswith(SUFFIXES):
            raise InputError(
                f"The filepath provided must end in .weights.h5, or in .keras for the whole model. Received: {self.text!r}"
            )
        if "\0" in self.text:
            raise InputError(f"A path must not have a null character. Received: {self.text!r}")
        if re.search("[\ud800-\udfff]", self.last_part):  # Python's stand-ins for bytes that are not UTF-8
            raise InputError(f"A file name must be UTF-8. Received: {self.text!r}")
        for field, spec, conversion in self._fields():
            name = re.split(r"[.\[]", field)[0]
            if not name.strip() or name.isdecimal() or (name != field and name in FIELDS):
                raise InputError(f"A field must be a name in braces: {_VALID}. Received: {{{field}}} in {self.text!r}")
            if conversion:
                raise InputError(
                    f"A field must not have a conversion. Use {{{field}}}. Received: {{{field}!{conversion}}} in {self.text!r}"
                )
            if "/" in spec:
                raise InputError(f"A format must not put a slash into a name. Received: {{{field}:{spec}}} in {self.text!r}")
            try:
                if re.search(r"[1-9]\d{3}", spec):
                    raise ValueError("it is longer than a file name")
                _look(field, spec)
            except (ValueError, OverflowError) as error:
                raise InputError(f"{{{field}:{spec}}} in {self.text!r} is not a number format: {error}") from None

    @property
    def suffix(self) -> str:
        """`.weights.h5` or `.keras`."""
        return next(suffix for suffix in SUFFIXES if self.text.endswith(suffix))

    @property
    def directory(self) -> str:
        """The directory before the first field."""
        return os.path.dirname(self._parts[0][0]) or "."

    @property
    def has_fields(self) -> bool:
        """Whether the text has fields."""
        return any(True for _ in self._fields())

    @property
    def counters(self) -> tuple[str, ...]:
        """The fields that change during training; empty if each save replaces the same file."""
        return tuple(field for field, _, _ in self._fields() if field != "replicas")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The fields that are logged metrics."""
        return tuple(field for field, _, _ in self._fields() if field not in FIELDS)

    def missing(self, metrics: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the fields whose value is missing or None in these metrics."""
        return tuple(field for field in self.metrics if _find(field, metrics) is None)

    def format(self, counts: object, metrics: Mapping[str, Any]) -> str:
        """Returns the path of a checkpoint.

        Args:
            counts: an object with the counters as attributes.
            metrics: a value for each of `self.metrics`.

        Raises:
            InputError: if a value cannot be formatted as its field says.
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
                    f"{{{field}:{spec}}} in {self.text!r} cannot format the logged value: {error}. "
                    f"Use {{{field}}}, or a metric that is a number. Received: {received}"
                ) from None
            return re.sub(r"\A\.", "_", text) if _takes_texts(spec) else text  # neither a hidden file nor `..`

        path = "".join(literal + (written(field, spec) if field else "") for literal, field, spec, _ in self._parts)
        directory, slash, name = path.rpartition("/")
        if name.startswith(".") and not self.last_part.startswith("."):  # an empty text came first
            name = f"_{name}"
        return directory + slash + name

    @property
    def last_part(self) -> str:
        """The template of the file name without its directory. Slashes in field names do not count."""
        masked = re.sub(r"\{\{|\}\}|\{[^{}]*\}", lambda braces: "." * len(braces[0]), self.text)
        return self.text[masked.rfind("/") + 1 :]

    def longest(self) -> str:
        """Returns a path of the greatest length: with large counters, and with metrics of many digits."""
        return "".join(literal + _longest(field, spec) for literal, field, spec, _ in self._parts)

    def expanded(self) -> "Template":
        """Returns the template with a leading `~` replaced by the home directory."""
        return Template(_with_home(self.text))

    def absolute(self) -> "Template":
        """Returns the template with an absolute path, which a change of the working directory does not move."""
        return Template(os.path.join(_escaped(os.getcwd()), _with_home(self.text)))

    @property
    def pattern(self) -> str:
        """A `glob` pattern that finds the files of this template, and perhaps others."""
        return "".join(glob.escape(literal) + ("*" if field else "") for literal, field, _, _ in self._parts)

    def files(self) -> list[str]:
        """Returns the existing paths that match this template, in any order. They need not be files.

        Raises:
            OSError: if a directory cannot be listed. `glob` would find nothing there, and a run would begin again.
        """
        found = [""]
        for part in re.split("(/+)", "".join(literal + ("\0" if field else "") for literal, field, _, _ in self._parts)):
            begin, is_unknown, _ = part.partition("\0")
            if is_unknown:
                found = [path + name for path in found for name in _names(path or ".", begin)]
            else:
                found = [path + part for path in found]
        return [path for path in found if self.matches(path) and os.path.lexists(path)]

    def matches(self, path: str) -> bool:
        """Returns whether a path matches this template."""
        return self._regex.fullmatch(path) is not None

    def makes(self, path: str, counts: object) -> bool:
        """Returns whether this template gives the path for these counters and some value of each metric."""
        return re.fullmatch(self._expression(counts), path) is not None

    def is_true_of(self, path: str, counts: object) -> bool:
        """Returns whether the counters in a file's name are these. A name that does not match the template has no counters.

        The template may come from a hostile file, so the time is linear in the length of the name.
        """
        claims = _claims(Template(self.last_part)._parts, os.path.basename(path))
        return all(format(getattr(counts, field), spec) == text for field, spec, text in claims)

    @functools.cached_property
    def _regex(self):
        return re.compile(self._expression())

    def _expression(self, counts: object = None) -> str:
        """Returns a regular expression of all paths, or of those with these counters."""

        def look(field, spec):
            known = counts is not None and field in FIELDS
            return re.escape(format(getattr(counts, field), spec)) if known else _look(field, spec)

        return "".join(re.escape(literal) + (look(field, spec) if field else "") for literal, field, spec, _ in self._parts)

    def _fields(self) -> Iterator[tuple[str, str, str | None]]:
        return ((field, spec, conversion) for _, field, spec, conversion in self._parts if field is not None)

    @functools.cached_property
    def _parts(self) -> list[tuple[str, str | None, str, str | None]]:
        """Literal text with the field that follows it, its spec and its conversion; None as field after the last text."""
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


def _names(directory: str, begin: str) -> list[str]:
    """Returns the names in a directory that begin so, without hidden ones; none if it is not there, or is a file."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.startswith(begin) and (begin or not name.startswith("."))]


def _look(field: str, spec: str) -> str:
    """Returns a regular expression of the texts of a field in this format."""
    return _look_of_counter(spec) if field in FIELDS else _look_of_metric(spec)


def _look_of_counter(spec: str) -> str:
    """Returns the expression of a counter. A longer counter is not padded: it starts with a nonzero digit or a base's prefix."""
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
    """Returns the counters in a name, each with its spec and its text; none if the name does not match.

    Fields without text between them cannot be told apart, so such a name has no counters either.
    """
    first, last, found = parts[0][0], parts[-1][0], []
    if not (name.startswith(first) and name[len(first) :].endswith(last)):
        return []
    at, end = len(first), len(name) - len(last)
    for (_, field, spec, _), (literal, after, _, _) in itertools.pairwise(parts):
        assert field is not None  # None stands only after the last part
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
    """Returns the value of a field, looked up as in `str.format`; None if there is none."""
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
        with contextlib.suppress(ValueError):  # a format of text, whose length is unknown
            written.append(format(value, spec))
    return max(written, key=len, default="")


def _any_of(characters: str) -> str:
    return f"[{''.join(re.escape(each) for each in sorted(set(characters)))}]"


def _with_home(text: str) -> str:
    head, slash, rest = text.partition("/")
    home = os.path.expanduser(head)
    return text if home == head else _escaped(home) + slash + rest


def _escaped(path: str) -> str:
    """Returns the template text for a literal path."""
    return path.replace("{", "{{").replace("}", "}}")
