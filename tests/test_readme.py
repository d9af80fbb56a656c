"""The README's commands are run as they stand there."""

import re
import shlex
import subprocess
import sys

from conftest import ROOT, USER_ENVIRONMENT


def commands():
    """Every line of a bash block that starts a recipe, without its comment."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if "-m recipes." in line]


def test_the_recipe_commands_train(tmp_path):
    found = commands()
    assert len(found) >= 2
    for i, line in enumerate(found):
        words = [sys.executable if word.endswith("python") else word for word in shlex.split(line)]
        run = subprocess.run(
            [*words, "--epochs", "3", "--workdir", str(tmp_path / str(i))],
            cwd=ROOT, env=USER_ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "result       accuracy" in run.stdout
        assert sorted(path.name for path in (tmp_path / str(i) / "checkpoints").iterdir()) == [
            "model_batch_at_00050.weights.h5",
            "model_batch_at_00066.weights.h5",
        ]


def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text())) - {"and"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
