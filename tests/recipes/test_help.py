"""`--help` of a recipe."""

import re

from recipes.mnist import parse_args


def test_help_groups_the_flags_shows_examples_and_leaves_out_defaults_of_none(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    try:
        parse_args(["--help"])
    except SystemExit as end:
        assert end.code == 0
    shown = capsys.readouterr().out
    assert "None" not in shown and "(default: False)" not in shown and "(default: 12)" in shown
    assert "data order (default: 0)" in shown
    groups = re.split(r"^(\S[^\n]*):$", shown, flags=re.MULTILINE)
    flags = {
        title: re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE) for title, text in zip(groups[1::2], groups[2::2], strict=True)
    }
    titles = ["devices", "training", "checkpoints", "curves and output", "computation", "only mnist", "examples"]
    assert [title for title in flags if title != "options"] == titles
    assert "--strategy" in flags["devices"] and "--epochs" in flags["training"] and "--resume" in flags["checkpoints"]
    assert flags["only mnist"] == ["--model", "--data"]
    assert shown.count("-m recipes.mnist") >= 4
