"""The walk in recipes/README.md, as it stands there: the file is saved, and the commands are run."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from processes import ROOT, USER_ENVIRONMENT

WALK = (ROOT / "recipes" / "README.md").read_text().split("## Your own model in ten minutes")[1].split("## What is where")[0]


@pytest.mark.slow
def test_a_recipe_of_ones_own_trains_goes_on_with_replicas_and_in_ranks(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", WALK, re.DOTALL)
    commands = "".join(re.findall(r"```bash\n(.*?)```", WALK, re.DOTALL)).replace("\\\n", "")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "recipes" / "odd_or_even.py").write_text(code)
    outputs = []
    for line in commands.splitlines():
        words = [sys.executable if word == ".venv/bin/python" else word for word in shlex.split(line)]
        environment = {**USER_ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
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
