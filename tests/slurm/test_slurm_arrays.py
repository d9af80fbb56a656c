"""Job arrays: each element is a run in its own directory."""

import pytest
from cluster import Job
from launching import wait_for
from processes import ROOT
from slurm_jobs import ENVIRONMENT, LONG, MIRRORED, RECIPE, hurry

from callbacks import latest_checkpoint

pytestmark = pytest.mark.slow


def test_elements_of_an_array_that_share_a_directory_are_refused(cluster, tmp_path):
    array = cluster.submit("--array=0-1", MIRRORED, *LONG, cwd=tmp_path, env=ENVIRONMENT)
    jobs = [Job(cluster, f"{array.number}_{i}", tmp_path) for i in range(2)]
    wait_for(lambda: any("same job array" in job.output for job in jobs), "the refusal")
    wait_for(lambda: any(job.show("JobState") == "FAILED" for job in jobs), "its end")
    cluster.run("scancel", array.number)
    ended = {job.end(): job for job in jobs}
    assert sorted(ended) == ["CANCELLED", "FAILED"]
    assert "same job array: give each element its own directory" in ended["FAILED"].output


def test_each_element_of_a_sweep_is_a_separate_run_that_is_requeued_separately(cluster, tmp_path):
    """Runs the lines of the README."""
    text = (ROOT / "slurm" / "README.md").read_text().split("## Sweeps")[1]
    sweep = text.split("cat > sweep.sh <<'EOF'\n")[1].split("EOF\n")[0]
    line = next(line for line in text.splitlines() if line.startswith("sbatch --array") and "sweep.sh" in line)
    (tmp_path / "sweep.sh").write_text(sweep.replace("-m recipes.mnist", " ".join(map(str, RECIPE))))
    words = [word.replace("slurm/", f"{ROOT}/slurm/").replace("0-3", "0-1") for word in line.split()[1:] if "gpus" not in word]
    array = cluster.submit(*words, cwd=tmp_path, env=ENVIRONMENT)
    jobs = [Job(cluster, f"{array.number}_{i}", tmp_path) for i in range(2)]
    second = tmp_path / "runs/sweep/1/checkpoints"
    wait_for((second / "model_batch_at_00010.weights.h5").exists, "the second element's first checkpoint")
    jobs[1].signal("USR1", "--batch")
    jobs[1].wait_for_attempt(2)
    hurry(tmp_path)
    assert [job.end() for job in jobs] == ["COMPLETED"] * 2, [job.output for job in jobs]
    assert [job.restarts for job in jobs] == [0, 1]
    found = [latest_checkpoint(tmp_path / f"runs/sweep/{i}/checkpoints") for i in range(2)]
    assert [each.batch for each in found] == [22 * 5] * 2
    assert all(f"--learning-rate {rate}" in job.output for rate, job in zip(("1e-3", "2e-3"), jobs, strict=True))
    logs = sorted(path.name for path in (tmp_path / "runs/logs").iterdir())
    assert logs == [f"{array.number}_{i}" for i in range(2)]
