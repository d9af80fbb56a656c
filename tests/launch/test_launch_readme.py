"""The tables and the drawing in launch/README.md."""

import re

from launching import ROOT

from launch import exit_codes

README = (ROOT / "launch" / "README.md").read_text()


def test_each_file_has_a_line():
    named = set(re.findall(r"`(\w+\.py)`", README.partition("## Files")[2]))
    assert named == {path.name for path in (ROOT / "launch").rglob("*.py")} - {"__init__.py"}


def test_the_exit_codes_and_restarts_are_those_of_the_table():
    rows = dict(re.findall(r"^\| (\d+) \| .* \| ?(yes|no)? ?\|$", README, re.MULTILINE))
    codes = {str(value) for name, value in vars(exit_codes).items() if isinstance(value, int) and name.isupper()}
    assert rows.keys() == codes
    assert {int(code) for code, again in rows.items() if again == "no"} == exit_codes.NEVER_RESTARTED


def test_the_drawing_names_existing_messages():
    from launch.network import messages

    for name in re.findall(r"\b(?:Rank|Node|Attempt|Signal|Send|End)[A-Z]\w+", README.partition("## Signals")[0]):
        assert hasattr(messages, name), name
