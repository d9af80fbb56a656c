"""Of several ranks, the chief writes the curves, which name the slowest rank."""

import pytest
from bare_ranks import run_ranks
from curves import curves
from processes import PROGRAMS


@pytest.mark.slow
def test_only_the_chief_of_four_ranks_writes_and_prints(tmp_path):
    flags = ["--model", "mlp", "--epochs", 1, "--profile-batches", "3:4", "--log-secs", 0.01]
    results = run_ranks(4, PROGRAMS / "count_event_files.py", *flags, "--workdir", tmp_path)
    for code, _, errors in results:
        assert code == 0, errors
    # five: four of the run, and one for `tf.summary` of the user
    assert [out.splitlines()[-1] for _, out, _ in results] == ["opened 5", "opened 0", "opened 0", "opened 0"]
    assert all(out.count("\n") == 1 for _, out, _ in results[1:])
    events = sorted(path.relative_to(tmp_path / "tensorboard").parts[:-1] for path in tmp_path.rglob("events.out.*"))
    assert events == [(), ("batches",), ("train",), ("validation",)]
    assert sorted(path.name for path in tmp_path.rglob("*.xplane.pb")) == ["rank-1.xplane.pb", "rank-3.xplane.pb"]
    assert all(path.stat().st_size > 1000 for path in tmp_path.rglob("*.xplane.pb"))
    found = curves(tmp_path / "tensorboard")
    assert [step for step, _ in found["batches", "ranks/step_spread_ms"]] == [10, 20]
    assert all(value in range(4) for _, value in found["batches", "ranks/slowest"])


@pytest.mark.slow
def test_the_slowest_rank_is_named(tmp_path):
    flags = ["--model", "mlp", "--epochs", 1, "--global-batch-size", 64, "--workdir", tmp_path]
    for code, _, errors in run_ranks(2, PROGRAMS / "slow_rank.py", *flags):
        assert code == 0, errors
    found = curves(tmp_path / "tensorboard")
    assert [value for _, value in found["batches", "ranks/slowest"]] == [1, 1]
    assert all(100 < value < 20_000 for _, value in found["batches", "ranks/step_spread_ms"])
