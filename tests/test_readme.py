"""Runs the commands of the README."""

import re
import shlex

import pytest
from processes import ROOT, USER_ENVIRONMENT, run_python

README = (ROOT / "README.md").read_text()


def commands():
    """Returns the lines of bash blocks that start a recipe, except those of Slurm, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if "-m recipes." in line and not line.startswith("sbatch")]


def run(line, directory, *more):
    python, *words = shlex.split(line)
    assert python == ".venv/bin/python"
    environment = {**USER_ENVIRONMENT, "PYTHONPATH": str(ROOT), "LAUNCH_SECRET": "hush"}
    return run_python([*words, *more], cwd=directory, env=environment)


TRAIN = [line for line in commands() if "--dry-run" not in line and "--nnodes" not in line]
LAUNCHED = [line for line in TRAIN if "-m launch" in line]
SAMPLE = README.split("Without a GPU, it prints:")[1].split("```")[1]
PRINTED = re.findall(r"^(?:[a-z]+ +|train longer )", SAMPLE, re.MULTILINE)  # labels at the beginning of lines
FROM_ANOTHER = [line for line in TRAIN if re.search(r"--(resume|init-from) runs/mnist", line)]
PLAIN = [line for line in TRAIN if line not in (*LAUNCHED, *FROM_ANOTHER)]


def test_each_command_starts_a_separate_run():
    directories = [line.split("--workdir ")[1] for line in TRAIN]
    assert len(set(directories)) == len(directories)


def test_it_has_commands_of_every_kind():
    assert len(PLAIN) >= 2 and len(LAUNCHED) >= 2 and len(commands()) >= len(TRAIN) + 3


@pytest.mark.slow
@pytest.mark.parametrize("line", [*PLAIN, *LAUNCHED])
def test_a_command_trains(line, tmp_path):
    out = run(line, tmp_path, "--epochs", "3")
    assert "result       accuracy" in out and all(label in out for label in PRINTED)
    workdir = line.split("--workdir ")[1]
    assert sorted(path.name for path in (tmp_path / workdir / "checkpoints").iterdir()) == [
        "model_batch_at_00050.weights.h5",
        "model_batch_at_00066.weights.h5",
    ]


@pytest.mark.slow
def test_commands_that_start_from_a_checkpoint_of_another_run_train(tmp_path):
    assert len(FROM_ANOTHER) == 2
    run(".venv/bin/python -m recipes.mnist", tmp_path, "--epochs", "3")
    resumed, fine_tuned = (run(line, tmp_path, "--epochs", "4") for line in FROM_ANOTHER)
    assert "model_batch_at_00050.weights.h5: batch 50" in resumed and "trained on   88 batches" in resumed
    assert "with the weights of runs/mnist" in fine_tuned and "trained on   88 batches" in fine_tuned


@pytest.mark.parametrize("line", [line for line in commands() if line not in TRAIN])
def test_a_command_for_several_nodes_or_a_dry_run_prints_its_table(line, tmp_path):
    """Only prints what would run; tests/launch/test_launch_nodes.py runs it."""
    assert "recipes.mnist" in run(line.replace("-m launch", "-m launch --dry-run"), tmp_path)


def test_the_named_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_each_line_of_the_matrix_of_faults_names_an_existing_test():
    folder = ROOT / "tests" / "callbacks"
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "callbacks" / "README.md").read_text())
    assert len(named) >= 20
    for file, test in named:
        assert f"def {test}(" in (folder / file).read_text(), test


def test_the_tables_of_callbacks_name_each_of_its_files():
    text = (ROOT / "callbacks" / "README.md").read_text().split("## Files")[1].split("\n## ")[0]
    files = {path.name for path in (ROOT / "callbacks").rglob("*.py") if not path.name.startswith("__")}
    assert sorted(re.findall(r"`(\w+\.py)`", text)) == sorted(files)


@pytest.mark.parametrize(("readme", "folder"), [("benchmarks", "benchmarks"), ("tests", "tests/helpers")])
def test_the_tables_of_files_list_every_file(readme, folder):
    """tests/recipes and tests/launch check the tables of those folders."""
    tables = [line for line in (ROOT / readme / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = {name for line in tables for name in re.findall(r"`(\w+\.py)`", line.split("|")[1])}
    assert named == {path.name for path in (ROOT / folder).glob("*.py") if path.name not in ("__init__.py", "__main__.py")}
