"""Signals to the launcher: ranks may save, and the exit code gives the reason."""

import os
import signal
import sys
import time

import pytest
from launching import program, sh, wait_for
from processes import PROGRAMS, run_program


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143), ("USR1", 75), ("USR2", 75)])
def test_a_signal_is_forwarded_once_and_the_ranks_may_save(launch, name, code):
    number = getattr(signal, f"SIG{name}")
    run = launch("--nproc-per-node", "2", "--max-restarts", "3", *program("signalled_rank.py", 0))
    assert run.file("ready-0") and run.file("ready-1")
    for _ in range(1 if name == "INT" else 3):  # Slurm sends TERM twice
        os.kill(run.process.pid, number)
        time.sleep(0.02)
    assert run.finish()[0] == code
    assert [run.file(f"heard-{rank}") for rank in range(2)] == [str(int(number))] * 2
    assert run.none_left()


def test_usr1_waits_until_a_rank_that_is_importing_has_its_handler(launch):
    run = launch("--nproc-per-node", "2", *sh(f"echo > begun-$RANK; exec {sys.executable} -S {PROGRAMS / 'signalled_rank.py'} 1"))
    _wait_for_ranks(run)
    os.kill(run.process.pid, signal.SIGUSR1)
    assert run.finish()[0] == 75
    assert run.file("heard-0") == str(int(signal.SIGUSR1))


def test_a_warning_during_the_start_of_a_rank_waits_for_its_handler(launch):
    """Before exec, a rank is a copy of the agent, whose handlers must not be mistaken for the rank's."""
    done = run_program("rank_before_exec.py")
    assert done.returncode == 0, done.stderr


def test_a_warning_during_the_start_of_the_ranks_is_not_lost(launch):
    for _ in range(5):
        run = launch("--nproc-per-node", "2", *program("signalled_rank.py", 0))
        run.rank(1)
        os.kill(run.process.pid, signal.SIGUSR1)
        assert run.finish()[0] == 75


def test_a_closed_terminal_ends_the_run_like_term_except_under_nohup(launch):
    run = launch("--nproc-per-node", "2", *program("signalled_rank.py", 0))
    assert run.file("ready-0") and run.file("ready-1")
    os.kill(run.process.pid, signal.SIGHUP)
    assert run.finish()[0] == 143
    assert [run.file(f"heard-{rank}") for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
    under_nohup = launch(*sh("touch begun; sleep 1; echo alive"), prefix=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"))
    wait_for((run.cwd / "begun").exists, "the rank")
    os.kill(under_nohup.process.pid, signal.SIGHUP)
    assert under_nohup.finish()[:2] == (0, "[0] alive\n")


def test_ranks_of_a_launcher_that_ignores_a_warning_survive_it_until_they_have_a_handler(launch):
    """Slurm signals every process of a step, even those that are starting."""
    deaf = ("sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh")
    run = launch("--nproc-per-node", "2", *sh("kill -USR1 $$; kill -USR2 $$; echo alive"), prefix=deaf)
    assert run.finish()[0] == 0
    assert [run.log(rank) for rank in range(2)] == ["alive\n"] * 2


def test_ranks_that_outlive_the_grace_period_are_killed(launch):
    run = launch("--nproc-per-node", "2", "--grace", "1", *sh('trap "" TERM; touch ready-$RANK; while :; do sleep 0.1; done'))
    _wait_for_ranks(run, "ready")
    os.kill(run.process.pid, signal.SIGTERM)
    code, _, err = run.finish()
    assert code == 137 and "did not end within 1 s (--grace)" in err
    assert run.none_left()


def test_a_second_ctrl_c_ends_ranks_that_would_still_save(launch):
    run = launch("--nproc-per-node", "2", *sh('trap "touch heard-$RANK" INT TERM; touch ready-$RANK; while :; do sleep 0.1; done'))
    _wait_for_ranks(run, "ready")
    os.kill(run.process.pid, signal.SIGINT)
    _wait_for_ranks(run, "heard")
    assert run.process.poll() is None
    os.kill(run.process.pid, signal.SIGINT)
    code, _, err = run.finish()
    assert (code, err) == (130, "[launch] interrupted twice: ending the ranks at once\n")
    assert run.none_left()


def test_a_rank_that_crashes_while_the_others_save_is_a_failure(launch):
    script = 'if [ $RANK = 0 ]; then trap "exit 9" TERM; else trap "" TERM; fi; touch ready-$RANK; while :; do sleep 0.05; done'
    run = launch("--nproc-per-node", "2", "--max-restarts", "3", *sh(script))
    _wait_for_ranks(run, "ready")
    os.kill(run.process.pid, signal.SIGTERM)
    code, _, err = run.finish()
    assert code == 9 and "rank 0 on" in err and "exit code 9" in err and "restart" not in err


@pytest.mark.parametrize("code", [75, 143])
def test_ranks_that_stopped_by_themselves_are_not_restarted(launch, code):
    run = launch("--nproc-per-node", "2", "--max-restarts", "3", *sh(f"echo life >> lives-$RANK; exit {code}"))
    assert run.finish()[0] == code
    assert "life life" not in " ".join(path.read_text().replace("\n", " ") for path in run.cwd.glob("lives-*"))


def test_ctrl_c_between_two_attempts_ends_the_run(launch):
    run = launch("--max-restarts", "9", *sh("exit 1"))
    while "restart 4" not in run.process.stderr.readline():  # the next one begins in 4 s
        pass
    os.kill(run.process.pid, signal.SIGINT)
    assert run.finish()[0] == 130


def _wait_for_ranks(run, name="begun"):
    wait_for(lambda: len(list(run.cwd.glob(f"{name}-*"))) == 2, "the ranks")
