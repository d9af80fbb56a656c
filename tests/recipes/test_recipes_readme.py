"""Runs the example in recipes/README.md: saves its file and runs its commands. Checks its tables of files."""

import re
import shlex
import shutil

import pytest
from processes import ROOT, USER_ENVIRONMENT, run_python

README = (ROOT / "recipes" / "README.md").read_text()
EXAMPLE = README.split("## Your own model in ten minutes")[1].split("## Files")[0]


@pytest.mark.slow
def test_the_example_recipe_trains_resumes_on_two_replicas_and_trains_in_two_ranks(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", EXAMPLE, re.DOTALL)
    commands = "".join(re.findall(r"```bash\n(.*?)```", EXAMPLE, re.DOTALL)).replace("\\\n", "")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "recipes" / "odd_or_even.py").write_text(code)
    outputs = []
    for line in commands.splitlines():
        python, *words = shlex.split(line)
        assert python == ".venv/bin/python"
        outputs.append(run_python(words, cwd=tmp_path, env={**USER_ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{ROOT}"}))
    first, longer, ranks, listed, skipped = outputs
    assert "model_batch_at_00100.weights.h5: batch 100" in skipped and "left out     batches 101:110 of the order" in skipped
    assert "strategy     single, 1 replica" in first and "trained on   220 batches" in first
    assert (
        "strategy     mirrored, 2 replicas" in longer and "batch 220, epoch 10" in longer and "trained on   330 batches" in longer
    )
    assert re.search("strategy     (horovod|multiworker), 2 replicas", ranks) and "trained on   220 batches" in ranks
    assert "model_batch_at_00330.weights.h5" in listed
    for out in (first, longer, ranks, skipped):
        assert float(re.search(r"val_accuracy (\S+?),", out)[1]) > 0.93


def test_the_tables_list_every_file():
    named = set()
    for table in README.split("## Files")[1].split("| file ")[1:]:
        folder = re.match(r"(?:in `([\w/]+)`)?", table)[1] or ""
        named |= {folder + name for name in re.findall(r"`(\w+\.py)`", table) if f"| `{name}`" in table or f", `{name}`" in table}
    files = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.py")}
    assert named == {str(path) for path in files if path.name != "__init__.py"}
