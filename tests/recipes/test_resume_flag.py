"""`--resume` accepts a word or a path."""

import pytest

from callbacks import InputError
from recipes.mnist import parse_args


def test_an_empty_path_is_refused_in_one_line():
    with pytest.raises(
        InputError, match=r"argument --resume: must be auto, never or the path of a checkpoint. Received: ''"
    ) as raised:
        parse_args(["--resume", ""])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("word", "expected"), [("auto", True), ("never", False), ("runs/a/b50.keras", "runs/a/b50.keras")])
def test_words_and_paths_are_taken(tmp_path, word, expected):
    assert parse_args(["--resume", word, "--workdir", str(tmp_path)]).resume_from == expected
