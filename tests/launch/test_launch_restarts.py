"""Restarts of all ranks after a failure."""

import pytest
from launching import program, sh

from launch.run.restarts import Restarts


def test_all_ranks_restart_until_they_succeed_and_their_logs_continue(launch):
    both_spoke = "touch here-$LAUNCH_RESTARTS-$RANK; while [ $(ls | grep -c here-$LAUNCH_RESTARTS-) -lt 2 ]; do sleep 0.01; done"
    script = f"echo life $LAUNCH_RESTARTS; {both_spoke}; [ $LAUNCH_RESTARTS = 2 ]"
    run = launch("--nproc-per-node", "2", "--max-restarts", "2", *sh(script))
    code, _, err = run.finish()
    assert code == 0
    assert "restart 1 of 2" in err and "restart 2 of 2" in err
    for rank in range(2):
        assert run.log(rank) == "life 0\nlife 1\nlife 2\n"
    assert run.none_left()


def test_the_number_of_restarts_is_limited(launch):
    run = launch("--max-restarts", "1", *sh("echo life; exit 3"))
    code, _, err = run.finish()
    assert code == 3 and "reached the limit of 1 restart without progress" in err
    assert run.log(0) == "life\nlife\n"


def test_bad_input_does_not_restart_the_run(launch):
    run = launch("--max-restarts", "3", *sh("echo life; exit 2"))
    assert run.finish()[0] == 2
    assert run.log(0) == "life\n"


def test_two_crashes_in_a_row_at_the_same_batch_end_the_run(launch):
    run = launch("--max-restarts", "5", *program("failing_at_a_batch.py", 120))
    code, _, err = run.finish()
    assert code == 3
    assert "the run failed twice in a row at batch 120" in err and "last batch  120" in err
    assert run.log(0) == "life\nlife\n"


@pytest.mark.parametrize(
    ("batches", "waits"),
    [
        ([None] * 5, [0.5, 1, 2, None]),
        ([10, 20, 30, 40, 50], [0.5] * 5),
        ([10, 8, 9, 7, 6], [0.5, 1, 2, None]),
        ([10, 8, 20, 5], [0.5, 1, 0.5, 1]),
        ([10, 10], [0.5, None]),
        ([10, None, 10], [0.5, 1, 2]),
        ([0, 0], [0.5, None]),
    ],
)
def test_progress_resets_the_restart_count(batches, waits):
    restarts = Restarts(3)
    found = []
    for batch in batches:
        found.append(restarts.after_failure(1, batch).wait)
        if found[-1] is None:
            break
    assert found == waits


def test_waits_do_not_grow_forever():
    restarts = Restarts(2000)
    assert max(restarts.after_failure(1, None).wait for _ in range(2000)) == 30
